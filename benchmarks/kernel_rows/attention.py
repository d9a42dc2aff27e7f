"""Rows of the kernels around the KV cache: RoPE and KV write, the task map, paged attention.

Heads are Llama-3.1-8B's (32 query heads, 8 KV heads of 128) and, where named so, Qwen3-0.6B's (16 and 8) or those of
Gemma-2-9B (16 and 8 of 256, with a soft cap). The cache is block-major with several layers, which the calls visit in
turn; blocks are scattered. Decode is compared with the read bandwidth (keys and values of every context, read once),
prefill with the matrix rate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.kernel_rows.case import Bench, Case, assert_near

BLOCK_SIZE = 16
CACHE_BYTES = 8 * 2**30
"""The most that all layers together take."""
MAX_LAYERS = 32
NUM_CHECKED_TOKENS = 16
"""Of a sequence, the last ones: the reference is slow."""


@dataclass(frozen=True)
class Heads:
    num_q: int = 32
    num_kv: int = 8
    dim: int = 128
    soft_cap: float = 0.0

    def layer_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Of keys and values in one layer."""
        return 2 * self.num_kv * self.dim * dtype.itemsize * num_tokens


GEMMA = Heads(num_q=16, dim=256, soft_cap=50.0)


class Step:
    """Sequences in a paged cache and the arrays of a step that computes the last tokens of each."""

    def __init__(self, bench: Bench, heads: Heads, query_lens: list[int], seq_lens: list[int]) -> None:
        device = bench.device
        self.heads = heads
        self.query_lens, self.lens = query_lens, seq_lens
        blocks = [-(-length // BLOCK_SIZE) for length in seq_lens]
        layer_bytes = heads.layer_bytes(sum(blocks) * BLOCK_SIZE, bench.dtype)
        self.num_layers = bench.pick(max(2, min(MAX_LAYERS, CACHE_BYTES // layer_bytes)), 2)
        self.kv_cache = bench.randn(sum(blocks), self.num_layers, 2, heads.num_kv, BLOCK_SIZE, heads.dim)
        scattered = torch.randperm(sum(blocks), device=device).to(torch.int32)
        self.block_tables = torch.zeros(len(blocks), max(blocks), dtype=torch.int32, device=device)
        for row, ids in enumerate(scattered.split(blocks)):
            self.block_tables[row, : len(ids)] = ids
        self.rows = torch.arange(len(blocks), dtype=torch.int32, device=device)
        self.query_start_loc = torch.tensor([0, *query_lens], device=device).cumsum(0).to(torch.int32)
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
        self.query = bench.randn(sum(query_lens), heads.num_q, heads.dim)

    def slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`positions` and `slot_mapping` int32 [T] of the step's tokens."""
        positions, slots = [], []
        for row, (query_len, seq_len) in enumerate(zip(self.query_lens, self.lens, strict=True)):
            own = torch.arange(seq_len - query_len, seq_len, device=self.rows.device)
            positions.append(own)
            slots.append(self.block_tables[row, own // BLOCK_SIZE].long() * BLOCK_SIZE + own % BLOCK_SIZE)
        return torch.cat(positions).to(torch.int32), torch.cat(slots).to(torch.int32)


def rope_write_kv(bench: Bench) -> Iterator[Case]:
    """Queries, keys and values read; queries written in place, keys and values into the cache."""
    from kernels.rope_write_kv import rope_write_kv

    heads = Heads(*bench.pick((32, 8, 128), (4, 2, 16)))
    half = heads.dim // 2
    width = (heads.num_q + 2 * heads.num_kv) * heads.dim
    for num_tokens in bench.pick((1, 64, 8192), (1, 5)):
        step = Step(bench, heads, [1] * num_tokens, [BLOCK_SIZE] * num_tokens)
        positions, slot_mapping = step.slots()
        angles = torch.rand(BLOCK_SIZE, half, device=bench.device) * 6
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        moved = 2 * num_tokens * width * bench.dtype.itemsize
        inputs = [bench.randn(num_tokens, width) for _ in range(bench.num_sets(moved))]

        def check(inputs: list = inputs, step: Step = step, args: tuple = (cos_sin, positions, slot_mapping)) -> None:
            cos_sin, positions, slot_mapping = args
            given = inputs[-1].float().view(len(positions), -1, heads.dim)
            cos, sin = cos_sin[positions.long(), None].split(half, dim=-1)
            first, second = given[:, : heads.num_q + heads.num_kv].split(half, dim=-1)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            step.kv_cache.fill_(torch.nan)
            query = rope_write_kv(inputs[-1], *args, step.kv_cache, 1)
            assert_near(query, turned[:, : heads.num_q], bench.dtype)
            blocks, offsets = slot_mapping.long() // BLOCK_SIZE, slot_mapping.long() % BLOCK_SIZE
            written = step.kv_cache[blocks, 1, :, :, offsets]  # [T, 2, num_kv, dim]
            assert_near(written[:, 0], turned[:, heads.num_q :], bench.dtype)
            assert_near(written[:, 1], given[:, heads.num_q + heads.num_kv :], bench.dtype)
            assert (~step.kv_cache.isnan()).sum() == written.numel()

        calls = [
            lambda x=x, step=step, layer=index % step.num_layers, args=(cos_sin, positions, slot_mapping): (
                rope_write_kv(x, *args, step.kv_cache, layer)
            )
            for index, x in enumerate(inputs)
        ]
        yield Case(f"{num_tokens} tokens", calls, check, moved, "copy")


def decode_attention(bench: Bench) -> Iterator[Case]:
    """One token of each sequence."""
    llama, qwen = Heads(), Heads(num_q=16)
    shapes = {
        "64 x 0.5k": (llama, [512] * 64),
        "64 x 4k": (llama, [4096] * 64),
        "1 x 128k + 31 x 4k": (llama, [131072, *[4096] * 31]),
        "256 x 0.6k, Qwen3-0.6B": (qwen, [600] * 256),
        "64 x 4k, Gemma-2-9B": (GEMMA, [4096] * 64),
    }
    tiny = {"3 short": (Heads(4, 2, 16), [5, 40, 17]), "2 short, capped": (Heads(4, 2, 16, 3.0), [5, 40])}
    for label, (heads, seq_lens) in bench.pick(shapes, tiny).items():
        step = Step(bench, heads, [1] * len(seq_lens), seq_lens)
        work = heads.layer_bytes(sum(seq_lens), bench.dtype)
        yield _attention_case(bench, label, step, work, "read")


def prefill_attention(bench: Bench) -> Iterator[Case]:
    """Whole prompts, and a chunk of one that is long already."""
    shapes = {
        "2 x 4k": (Heads(), [4096] * 2, [4096] * 2),
        "8 x 1k": (Heads(), [1024] * 8, [1024] * 8),
        "2k after 30k": (Heads(), [2048], [32768]),
        "2 x 4k, Gemma-2-9B": (GEMMA, [4096] * 2, [4096] * 2),
    }
    tiny = {
        "20 after 13": (Heads(4, 2, 16), [20], [33]),
        "20 after 13, capped": (Heads(4, 2, 16, 3.0), [20], [33]),
    }
    for label, (heads, query_lens, seq_lens) in bench.pick(shapes, tiny).items():
        step = Step(bench, heads, query_lens, seq_lens)
        pairs = sum(
            query * (seq - query) + query * (query + 1) // 2 for query, seq in zip(query_lens, seq_lens, strict=True)
        )
        yield _attention_case(bench, label, step, 4 * heads.num_q * heads.dim * pairs, "matmul")


def plan_attention(bench: Bench) -> Iterator[Case]:
    """The task map, once per step; its latency counts, so the bytes are only those of its inputs."""
    from kernels.attention_tasks import plan_attention

    for num_seqs in bench.pick((1, 64, 256), (3,)):
        step = Step(bench, Heads(4, 2, 16), [1] * num_seqs, [512] * num_seqs)
        workspace = _workspace(bench, step)

        def call(step: Step = step, workspace: object = workspace) -> None:
            plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)

        yield Case(f"{num_seqs} sequences", [call], call, 12 * num_seqs, "read")  # checked by attention itself


def _workspace(bench: Bench, step: Step) -> object:
    from kernels.attention_workspace import make_attention_workspace
    from kernels.hopper_attention import supports

    heads = step.heads
    group = heads.num_q // heads.num_kv
    return make_attention_workspace(
        len(step.lens), len(step.query), heads.num_kv, group, heads.dim, bench.device,
        use_wgmma=supports(step.query.device, bench.dtype, heads.dim, group, BLOCK_SIZE),
    )  # fmt: skip


def _attention_case(bench: Bench, label: str, step: Step, work: int, bound: str) -> Case:
    from kernels.attention_tasks import plan_attention
    from kernels.paged_attention import paged_attention

    workspace = _workspace(bench, step)
    plan_attention(workspace, step.rows, step.query_start_loc, step.seq_lens)
    scale = step.heads.dim**-0.5
    out = bench.poisoned(len(step.query), step.heads.num_q * step.heads.dim)
    has_long = max(step.query_lens) > 1

    def run(layer: int) -> None:
        tables = step.block_tables
        paged_attention(
            step.query, step.kv_cache, layer, workspace, tables, scale, out, has_long=has_long,
            soft_cap=step.heads.soft_cap,
        )  # fmt: skip

    def check() -> None:
        out.fill_(torch.nan)
        run(1)
        assert not out.isnan().any()
        for row in {0, len(step.lens) - 1}:
            _check_sequence(bench, step, row, out, scale)

    calls = [lambda layer=layer: run(layer) for layer in range(step.num_layers)]
    return Case(label, calls, check, work, bound)  # type: ignore[arg-type]  # one of the three


def _check_sequence(bench: Bench, step: Step, row: int, out: torch.Tensor, scale: float) -> None:
    """The last tokens of one sequence, in layer 1, against the oracle."""
    from kernels.reference_attention import attention_reference

    end = int(step.query_start_loc[row + 1])
    start = max(int(step.query_start_loc[row]), end - NUM_CHECKED_TOKENS)
    bounds = torch.tensor([0, end - start], dtype=torch.int32, device=bench.device)
    one = slice(row, row + 1)
    query = step.query[start:end]
    expected = attention_reference(
        query, step.kv_cache, 1, step.rows[one], step.block_tables, bounds, step.seq_lens[one], scale,
        soft_cap=step.heads.soft_cap,
    )  # fmt: skip
    assert_near(out[start:end], expected, bench.dtype, summands=1.0)  # values are about 1, weights sum to 1
