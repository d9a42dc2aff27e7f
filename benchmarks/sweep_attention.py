"""Which tiles paged attention should use, and how far from the hardware's limits it then is.

    python -m benchmarks.sweep_attention                  # on a GPU with 40 GB or more, under two minutes
    python -m benchmarks.sweep_attention --only short     # or long: one of the two sweeps, and none of the layouts
    python -m benchmarks.sweep_attention --heads gemma2-9b
    python -m benchmarks.sweep_attention --dry            # tiny, in Triton's interpreter: does it run at all

Decode shapes are compared with the read bandwidth of a plain reduction over 4 GiB, prefill shapes with a large matrix
product, both measured in this run. All layers of a cache of up to 20 GiB are visited in turn inside a CUDA graph, so
that no layer finds its keys in the L2 cache. For every shape and tile some tokens are compared with the float64
reference first.

The layout "block-major" is [num_blocks, L, 2, H, B, D] in memory, "layer-major" [L, num_blocks, 2, H, B, D].
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

DRY = "--dry" in sys.argv[1:]
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import torch  # noqa: E402  (after the environment)
import triton  # noqa: E402  (after the environment)
import triton.language as tl  # noqa: E402  (after the environment)

from kernels import hopper_attention  # noqa: E402  (after the environment)
from kernels.attention_tasks import plan_attention  # noqa: E402  (after the environment)
from kernels.attention_workspace import (  # noqa: E402  (after the environment)
    LONG_TILES,
    SHORT_TILES,
    WGMMA_TILES,
    AttentionWorkspace,
    Tile,
    make_attention_workspace,
)
from kernels.paged_attention import paged_attention  # noqa: E402  (after the environment)
from kernels.reference_attention import attention_reference  # noqa: E402  (after the environment)

DEVICE = "cpu" if DRY else "cuda"
DTYPE = torch.float16 if DRY else torch.bfloat16  # the interpreter multiplies bf16 wrongly
BLOCK_SIZE = 16
MAX_LAYERS = 2 if DRY else 32
CACHE_BYTES = 2**22 if DRY else 20 * 2**30
READ_BYTES = 2**20 if DRY else 4 * 2**30
MIN_SECONDS = 0.02
NUM_CHECKED = 12


class Heads(NamedTuple):
    """Of one layer."""

    num_kv: int
    group: int
    dim: int
    soft_cap: float = 0.0


HEADS = {
    "llama8b": Heads(8, 4, 128),
    "qwen06b": Heads(8, 2, 128),
    "gemma2-9b": Heads(8, 2, 256, 50.0),
    "gemma3-1b": Heads(1, 4, 256),
}
TINY_HEADS = Heads(2, 4, 64)
Batch = Sequence[tuple[int, int]]  # (seq_len, query_len)
DECODE: dict[str, Batch] = {
    "1 x 256": [(256, 1)],
    "1 x 4096": [(4096, 1)],
    "64 x 512": [(512, 1)] * 64,
    "64 x 640": [(640, 1)] * 64,
    "256 x 600": [(600, 1)] * 256,
    "64 x 4096": [(4096, 1)] * 64,
    "1 x 128k + 31 x 4k": [(131072, 1)] + [(4096, 1)] * 31,
}
PREFILL: dict[str, Batch] = {
    "2 x 4096": [(4096, 4096)] * 2,
    "8 x 1024": [(1024, 1024)] * 8,
    "2048 on 30k": [(32768, 2048)],
    "2048 on 30k + 64 x 2k decode": [(32768, 2048)] + [(2048, 1)] * 64,
}
SHORT_SWEEP = {
    128: [
        SHORT_TILES[128, 2],
        Tile(8, 32, 2, 4, 4, min_units=8),
        Tile(8, 32, 2, 3, 6, min_units=8),
        Tile(8, 32, 2, 3, 4, min_units=2),
        Tile(8, 64, 4, 3, 3, min_units=4),
        Tile(8, 16, 1, 4, 8, min_units=8),
        Tile(8, 128, 8, 2, 2, min_units=2),
    ],
    256: [
        SHORT_TILES[256, 2],
        Tile(8, 32, 2, 3, 2, min_units=4),
        Tile(8, 32, 2, 2, 3, min_units=4),
        Tile(8, 16, 1, 3, 4, min_units=8),
        Tile(8, 16, 1, 3, 6, min_units=8),
        Tile(8, 64, 4, 2, 1, min_units=4),
        Tile(8, 32, 2, 3, 3, min_units=4),
    ],
}
LONG_SWEEP = {
    128: [
        WGMMA_TILES[128],
        replace(WGMMA_TILES[128], overhead=1),
        replace(WGMMA_TILES[128], overhead=4),
        LONG_TILES[128, 2],
        Tile(128, 128, 8, 2, 1, overhead=2),
        Tile(128, 32, 8, 3, 2, overhead=4),
    ],
    256: [
        WGMMA_TILES[256],
        replace(WGMMA_TILES[256], overhead=2),
        replace(WGMMA_TILES[256], overhead=6),
        LONG_TILES[256, 2],
    ],
}
"""By head_dim. Those for wgmma have four warps, those for Triton's own products eight."""
if DRY:
    DECODE = {"3 x 70": [(70, 1)] * 3}
    PREFILL = {"2 x 40": [(40, 40)] * 2}
    SHORT_SWEEP, LONG_SWEEP = {64: [Tile(8, 32, 4, 2, 1)]}, {64: [Tile(32, 32, 4, 2, 1, overhead=2)]}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine did in this run: bytes and operations per second."""

    read: float
    matmul: float


@triton.jit
def _read_kernel(source, out, per_program, BLOCK: tl.constexpr):
    """Sums up [num_programs, per_program] float32; what is measured is the reading."""
    lane = tl.arange(0, BLOCK)
    row = source + tl.program_id(0).to(tl.int64) * per_program
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, per_program, BLOCK):
        total += tl.load(row + first + lane)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes inside a CUDA graph, launches not counted; the mean of enough replays."""
    work()  # compiles
    if DRY:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    repeats = 1
    while True:
        graph.replay()
        start.record()
        for _ in range(repeats):
            graph.replay()
        end.record()
        end.synchronize()
        elapsed = start.elapsed_time(end) / 1e3
        if elapsed >= MIN_SECONDS:
            return elapsed / repeats
        repeats = max(repeats + 1, int(1.2 * repeats * MIN_SECONDS / elapsed))


def measure_read_bandwidth() -> float:
    """Bytes per second."""
    num_programs, block = (4, 1024) if DRY else (8192, 8192)
    source = torch.zeros(num_programs, READ_BYTES // 4 // num_programs, device=DEVICE)
    out = torch.empty(num_programs, device=DEVICE)
    return READ_BYTES / seconds(
        lambda: _read_kernel[(num_programs,)](source, out, source.shape[1], BLOCK=block, num_warps=8)
    )


def measure_matmul() -> float:
    """Operations per second."""
    size = 64 if DRY else 8192
    a, b = (torch.randn(size, size, device=DEVICE).to(DTYPE) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


@dataclass(frozen=True, slots=True)
class Step:
    """One batch over a cache whose layers are all visited."""

    heads: Heads
    batch: Batch
    query: torch.Tensor
    kv_cache: torch.Tensor
    rows: torch.Tensor
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor

    @property
    def num_layers(self) -> int:
        """Layers of the cache."""
        return self.kv_cache.shape[1]


def make_step(memory: torch.Tensor, batch: Batch, heads: Heads, layer_major: bool = False) -> Step:
    """The batch on shuffled blocks in `memory`, with as many layers as fit."""
    counts = [-(-seq_len // BLOCK_SIZE) for seq_len, _ in batch]
    num_blocks, tile = sum(counts), 2 * heads.num_kv * BLOCK_SIZE * heads.dim
    num_layers = max(1, min(MAX_LAYERS, memory.numel() // (num_blocks * tile)))
    flat = memory[: num_blocks * num_layers * tile]
    rest = (2, heads.num_kv, BLOCK_SIZE, heads.dim)
    if layer_major:
        kv_cache = flat.view(num_layers, num_blocks, *rest).transpose(0, 1)
    else:
        kv_cache = flat.view(num_blocks, num_layers, *rest)
    tables = torch.zeros(len(batch), max(counts), dtype=torch.int32)
    for row, blocks in enumerate(torch.randperm(num_blocks).int().split(counts)):
        tables[row, : len(blocks)] = blocks
    starts = torch.tensor([0, *(query_len for _, query_len in batch)]).cumsum(0)
    num_q = heads.num_kv * heads.group
    qkv = torch.randn(int(starts[-1]), num_q + 2 * heads.num_kv, heads.dim, device=DEVICE).to(DTYPE)
    return Step(
        heads,
        batch,
        qkv[:, :num_q],
        kv_cache,
        torch.arange(len(batch), dtype=torch.int32, device=DEVICE),
        tables.to(DEVICE),
        starts.int().to(DEVICE),
        torch.tensor([seq_len for seq_len, _ in batch], dtype=torch.int32, device=DEVICE),
    )


def run_layers(step: Step, workspace: AttentionWorkspace, out: torch.Tensor, has_long: bool) -> None:
    """One step's attention, without the task map."""
    for layer in range(step.num_layers):
        paged_attention(
            step.query, step.kv_cache, layer, workspace, step.block_tables, step.heads.dim**-0.5, out,
            has_long=has_long, soft_cap=step.heads.soft_cap,
        )  # fmt: skip


def largest_error(step: Step, out: torch.Tensor) -> float:
    """Of some tokens of the last layer: first, middle and last ones, each as a decode step of the reference."""
    samples = []
    for i, (seq_len, query_len) in list(enumerate(step.batch))[:: max(1, len(step.batch) // (NUM_CHECKED // 3))]:
        start = int(step.query_start_loc[i])
        samples += [(start + at, i, seq_len - query_len + at + 1) for at in {0, query_len // 2, query_len - 1}]
    tokens, rows, lens = torch.tensor(samples, device=DEVICE).unbind(1)
    wanted = attention_reference(
        step.query[tokens], step.kv_cache, step.num_layers - 1, rows, step.block_tables,
        torch.arange(len(samples) + 1), lens, step.heads.dim**-0.5, soft_cap=step.heads.soft_cap,
    )  # fmt: skip
    # Long averages of random values are small: the error counts relative to their size.
    return float((out[tokens].double() - wanted).abs().max() / wanted.abs().max())


def measure(step: Step, short: Tile | None, long: Tile | None) -> tuple[float, float, float]:
    """(seconds per layer, seconds of the task map, largest relative error)."""
    num_kv, group, dim, _ = step.heads
    supported = hopper_attention.supports(step.query.device, DTYPE, dim, group, BLOCK_SIZE)
    workspace = make_attention_workspace(
        len(step.batch), len(step.query), num_kv, group, dim, DEVICE, dtype=DTYPE, short_tile=short, long_tile=long,
        use_wgmma=supported and (long is None or long.num_warps == WGMMA_TILES[dim].num_warps),
    )  # fmt: skip
    has_long = any(query_len > 1 for _, query_len in step.batch)
    out = torch.full((len(step.query), num_kv * group * dim), torch.nan, dtype=DTYPE, device=DEVICE)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    run_layers(step, workspace, out, has_long)
    error = largest_error(step, out)
    plan_time = seconds(lambda: plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens))
    return seconds(lambda: run_layers(step, workspace, out, has_long)) / step.num_layers, plan_time, error


def report(name: str, tile: str, step: Step, result: tuple[float, float, float], limits: Limits) -> None:
    """One line: time per layer, GB/s of keys and values, TFLOP/s, both with their share of what the machine did."""
    elapsed, plan_time, error = result
    num_kv, group, dim, _ = step.heads
    num_bytes = sum(seq_len for seq_len, _ in step.batch) * 2 * num_kv * dim * DTYPE.itemsize
    pairs = sum(query_len * (2 * seq_len - query_len + 1) // 2 for seq_len, query_len in step.batch)
    bandwidth, rate = num_bytes / elapsed, 4 * dim * num_kv * group * pairs / elapsed
    verdict = "" if error < 0.02 else "   WRONG"
    print(
        f"{name:28} {tile:24} {elapsed * 1e6:9.1f} µs  {bandwidth / 1e9:6.0f} GB/s {bandwidth / limits.read:6.1%}  "
        f"{rate / 1e12:6.1f} TFLOP/s {rate / limits.matmul:6.1%}  map {plan_time * 1e6:5.1f} µs  "
        f"error {error:.4f}{verdict}",
        flush=True,
    )


def describe(tile: Tile) -> str:
    """A tile in one word."""
    return (
        f"{tile.block_m}x{tile.block_n} w{tile.num_warps} s{tile.num_stages} p{tile.programs_per_sm} "
        f"u{tile.min_units} o{tile.overhead}"
    )


def sweep(
    memory: torch.Tensor, shapes: dict[str, Batch], heads: Heads, tiles: Sequence[Tile], is_short: bool, limits: Limits
) -> None:
    """Every tile on every shape; a tile that needs more than the machine has is said and skipped."""
    for name, batch in shapes.items():
        step = make_step(memory, batch, heads)
        for tile in tiles:
            short, long = (tile, None) if is_short else (None, tile)
            try:
                result = measure(step, short, long)
            except triton.runtime.errors.OutOfResources as error:
                print(f"{name:28} {describe(tile):24} {error}")
                continue
            report(name, describe(tile), step, result, limits)


def compare_layouts(memory: torch.Tensor, heads: Heads, limits: Limits) -> None:
    """The tables' tiles on all shapes, with both layouts of the cache."""
    print("\nThe tables' tiles, both layouts")
    for name, batch in {**DECODE, **PREFILL}.items():
        for layer_major in (False, True):
            step = make_step(memory, batch, heads, layer_major)
            layout = ("layer-major" if layer_major else "block-major") + f", {step.num_layers} layers"
            report(name, layout, step, measure(step, None, None), limits)


def main() -> None:
    """Ceilings, the layouts, then the tiles."""
    parser = argparse.ArgumentParser(description="Tiles of paged attention, measured.")
    parser.add_argument("--only", choices=("short", "long"), help="one of the two sweeps")
    parser.add_argument("--heads", choices=HEADS, default="llama8b", help="of which model")
    parser.add_argument("--dry", action="store_true", help="tiny shapes in Triton's interpreter")
    arguments = parser.parse_args()
    only, heads = arguments.only, TINY_HEADS if DRY else HEADS[arguments.heads]
    torch.manual_seed(0)
    limits = Limits(measure_read_bandwidth(), measure_matmul())
    device = "interpreter" if DRY else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, triton {triton.__version__}, {DTYPE}, {heads}")
    print(f"read {limits.read / 1e9:.0f} GB/s, matmul {limits.matmul / 1e12:.1f} TFLOP/s", flush=True)
    memory = torch.empty(CACHE_BYTES // DTYPE.itemsize, dtype=DTYPE, device=DEVICE).normal_()

    if only is None:
        compare_layouts(memory, heads, limits)
    if only != "long":
        print("\nShort tiles")
        sweep(memory, DECODE, heads, SHORT_SWEEP[heads.dim], True, limits)
    if only != "short":
        print("\nLong tiles")
        sweep(memory, PREFILL, heads, LONG_SWEEP[heads.dim], False, limits)


if __name__ == "__main__":
    main()
