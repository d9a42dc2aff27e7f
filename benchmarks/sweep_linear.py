"""Which tiles products of few rows should use, beside cuBLAS and the read bandwidth of the same machine.

    python -m benchmarks.sweep_linear             # on a GPU with 40 GB or more, about a minute and a half
    python -m benchmarks.sweep_linear --rows 1 --models "Qwen3 0.6B"
    python -m benchmarks.sweep_linear --dry       # tiny, in Triton's interpreter: does it run at all

The four products of a layer and the projection to logits, in CUDA graphs (benchmarks/timing.py) that visit more than
400 MB of weights in turn, so that no weight is in the L2 cache. Every configuration's result, on poisoned memory, is
compared with float64 arithmetic at some output features first. Gate-up is timed with the activation: in the same launch
by our kernel, as a second launch beside cuBLAS. "mm" is torch's product alone. The tile that `choose` takes is marked,
and a layer's four products are summed up at the end.

Kernels are compiled by several processes beforehand, into the cache that the run then finds.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

DRY = "--dry" in sys.argv[1:]
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import torch  # noqa: E402  (after the environment)
import torch.nn.functional as F  # noqa: E402  (after the environment)
import triton  # noqa: E402  (after the environment)

from benchmarks.roofline import measure_apart  # noqa: E402  (after the environment)
from benchmarks.timing import median_seconds  # noqa: E402  (after the environment)
from kernels.activation import act_and_mul  # noqa: E402  (after the environment)
from kernels.reference import act_and_mul as reference_act_and_mul  # noqa: E402  (after the environment)
from kernels.skinny_linear import skinny_linear  # noqa: E402  (after the environment)
from kernels.skinny_tiles import MAX_VECTOR_ROWS, SkinnyTile, SkinnyWorkspace, choose  # noqa: E402  (after the environment)

DEVICE = "cpu" if DRY else "cuda"
DTYPE = torch.float16 if DRY else torch.bfloat16  # the interpreter multiplies bf16 wrongly
ROWS = (1, 2, 4, 8, 16, 24, 32)
COLD_BYTES = 2**14 if DRY else 400 * 10**6
NUM_CHECKED = 64
"""Output features."""
COMPILERS = 12
"""Processes; each takes a few hundred MB of the GPU's memory."""


@dataclass(frozen=True, slots=True)
class Product:
    """A weight [num_out, num_in] and what is done with it."""

    name: str
    num_out: int
    num_in: int
    activation: str | None = None
    logits: bool = False  # a result in float32, not rounded

    @property
    def weight_bytes(self) -> int:
        return self.num_out * self.num_in * DTYPE.itemsize


MODELS = {
    "Llama 8B": (
        Product("QKV", 6144, 4096),
        Product("O", 4096, 4096),
        Product("gate-up", 28672, 4096, "silu"),
        Product("down", 4096, 14336),
        Product("LM head", 128256, 4096, logits=True),
    ),
    "Qwen3 0.6B": (
        Product("QKV", 4096, 1024),
        Product("O", 1024, 2048),
        Product("gate-up", 6144, 1024, "silu"),
        Product("down", 1024, 3072),
        Product("LM head", 151936, 1024, logits=True),
    ),
}
if DRY:
    MODELS = {"tiny": (Product("QKV", 36, 64), Product("gate-up", 40, 48, "silu"), Product("LM", 50, 64, logits=True))}
    ROWS = (1, 5)


VECTOR_TILES = [
    SkinnyTile(1, block_n, block_k, num_warps, num_stages)
    for block_n, block_k, num_warps, num_stages in (
        (2, 1024, 4, 1), (4, 1024, 4, 1), (8, 1024, 4, 1), (4, 512, 2, 1), (8, 512, 2, 1), (2, 2048, 8, 1),
        (4, 2048, 8, 1), (2, 2048, 4, 1), (4, 256, 1, 1), (8, 256, 1, 1), (4, 1024, 4, 3),
    )
]  # fmt: skip
MATRIX_TILES = [
    (SkinnyTile(16, block_n, block_k, num_warps, num_stages), programs)
    for block_n, block_k, num_warps, num_stages, programs in (
        (64, 128, 4, 3, 396), (64, 128, 4, 4, 264), (64, 128, 4, 6, 132), (64, 128, 4, 6, 264), (64, 64, 4, 8, 132),
        (64, 64, 4, 8, 264), (64, 64, 4, 12, 132), (64, 256, 4, 3, 132), (32, 128, 2, 6, 264), (32, 128, 2, 6, 528),
        (32, 256, 2, 3, 264), (32, 256, 2, 4, 264), (16, 256, 1, 4, 396), (16, 256, 1, 6, 264), (16, 256, 1, 6, 528),
        (16, 512, 2, 4, 264), (128, 128, 4, 5, 132), (128, 64, 8, 6, 132),
    )
]  # fmt: skip
"""Tiles, and as many programs as K is to be split for."""
if DRY:
    VECTOR_TILES, MATRIX_TILES = VECTOR_TILES[:1], MATRIX_TILES[-1:]


def tiles(num_rows: int, product: Product) -> Iterator[SkinnyTile]:
    """What is tried; first what `choose` takes."""
    chosen = choose(num_rows, product.num_out, product.num_in, DTYPE)
    candidates = [] if chosen is None else [chosen]
    if num_rows <= MAX_VECTOR_ROWS:
        rows = 2 if product.activation else 1  # a gate's and the one of up that belongs to it
        block_m = triton.next_power_of_2(num_rows)
        fits = [tile for tile in VECTOR_TILES if tile.block_k < 2 * product.num_in and tile.block_n >= rows]
        candidates += [replace(tile, block_m=block_m) for tile in fits]
    if num_rows > 1:
        block_m = max(8, triton.next_power_of_2(num_rows))
        for tile, programs in MATRIX_TILES:
            candidates.append(replace(tile, block_m=block_m, split=fill(tile, product, programs)))
    yield from dict.fromkeys(candidates)


def fill(tile: SkinnyTile, product: Product, programs: int) -> int:
    """Parts of K with which there are up to so many programs, each with some work."""
    num_steps = triton.cdiv(product.num_in, tile.block_k)
    split = max(1, min(programs // tile.num_tiles(product.num_out), num_steps, 16))
    return triton.cdiv(num_steps, triton.cdiv(num_steps, split))


@dataclass(frozen=True, slots=True)
class Inputs:
    """One product's weights, which are visited in turn, and input."""

    product: Product
    weights: Sequence[torch.Tensor]
    x: torch.Tensor  # [M, num_in]

    @property
    def out_dtype(self) -> torch.dtype:
        return torch.float32 if self.product.logits else DTYPE


def make_inputs(memory: torch.Tensor, product: Product, num_rows: int) -> Inputs:
    """Weights as views of `memory`, whose numbers have a variance of 1."""
    count = max(2, -(-COLD_BYTES // product.weight_bytes))
    size = product.num_out * product.num_in
    weights = [part.view(product.num_out, product.num_in) for part in memory[: count * size].split(size)]
    # Results of about 1, as in a model whose weights are small and whose inputs are not.
    x = torch.randn(num_rows, product.num_in, device=DEVICE) * product.num_in**-0.5
    return Inputs(product, weights, x.to(DTYPE))


def make_workspace(tile: SkinnyTile, num_out: int) -> SkinnyWorkspace:
    """Just as large as the tile needs it."""
    return SkinnyWorkspace(
        torch.full((tile.num_partials(num_out),), torch.nan, device=DEVICE),
        torch.zeros(tile.num_tiles(num_out), dtype=torch.int32, device=DEVICE),
    )


def run(inputs: Inputs, weight: torch.Tensor, workspace: SkinnyWorkspace, tile: SkinnyTile, out: torch.Tensor) -> None:
    """One product by our kernel."""
    skinny_linear(inputs.x, weight, None, workspace, tile, activation=inputs.product.activation, out=out)


def make_out(inputs: Inputs) -> torch.Tensor:
    """Poisoned."""
    width = inputs.product.num_out // (2 if inputs.product.activation else 1)
    return torch.full((len(inputs.x), width), torch.nan, dtype=inputs.out_dtype, device=DEVICE)


def largest_error(inputs: Inputs, out: torch.Tensor) -> float:
    """Of some output features with the last weight, relative to the number or to 0.01; most are of the size of 1."""
    features = torch.randint(out.shape[1], (NUM_CHECKED,), device=DEVICE)
    weight, x = inputs.weights[-1], inputs.x.double()
    wanted = x @ weight[features].double().T
    if inputs.product.activation:
        up = x @ weight[features + out.shape[1]].double().T
        wanted = reference_act_and_mul(torch.cat((wanted, up), dim=-1), inputs.product.activation)
    error = float(((out[:, features].double() - wanted).abs() / (wanted.abs() + 0.01)).max())
    return error if not out.isnan().any() else float("nan")


def measure_torch(inputs: Inputs, activation: str | None) -> float:
    """Seconds of torch's product, with the activation behind it where one is asked for."""
    if inputs.product.logits and not DRY:
        out = make_out(inputs)
        calls: list[Callable[[], object]] = [
            lambda w=weight: torch.mm(inputs.x, w.t(), out_dtype=torch.float32, out=out) for weight in inputs.weights
        ]
    elif activation:
        calls = [lambda w=weight: act_and_mul(F.linear(inputs.x, w), activation) for weight in inputs.weights]
    else:
        calls = [lambda w=weight: F.linear(inputs.x, w) for weight in inputs.weights]
    return median_seconds(calls, DEVICE)


def measure(inputs: Inputs, tile: SkinnyTile) -> tuple[float, float]:
    """(seconds, largest error). Raises `OutOfResources` where a program of this tile does not fit onto an SM."""
    workspace, out = make_workspace(tile, inputs.product.num_out), make_out(inputs)
    run(inputs, inputs.weights[-1], workspace, tile, out)
    error = largest_error(inputs, out)
    calls = [lambda w=weight: run(inputs, w, workspace, tile, out) for weight in inputs.weights]
    seconds = median_seconds(calls, DEVICE)
    return seconds, error if not workspace.arrivals.any() else float("nan")


def describe(tile: SkinnyTile) -> str:
    return f"{tile.block_n}x{tile.block_k} m{tile.block_m} w{tile.num_warps} s{tile.num_stages} split {tile.split}"


def sweep(inputs: Inputs, bandwidth: float) -> tuple[float, float, float]:
    """Prints a line for each configuration; seconds of torch (with the activation), the chosen tile, the best one."""
    product = inputs.product
    label = f"{product.name:8} M={len(inputs.x):<3}"

    def line(what: str, seconds: float, remark: str) -> None:
        rate = product.weight_bytes / seconds
        print(f"{label} {what:34} {seconds * 1e6:8.2f} µs {rate / 1e9:6.0f} GB/s {rate / bandwidth:6.1%}  {remark}")

    library = measure_torch(inputs, None)
    line("mm", library, "")
    if product.activation:
        library = measure_torch(inputs, product.activation)
        line("mm, act_and_mul", library, "")
    times = []
    chosen, chosen_seconds = choose(len(inputs.x), product.num_out, product.num_in, DTYPE), library
    for tile in tiles(len(inputs.x), product):
        try:
            seconds, error = measure(inputs, tile)
        except triton.runtime.errors.OutOfResources as failure:
            print(f"{label} {describe(tile):34} {failure}")
            continue
        # One step of the type, and float32's errors in sums that are as small as 0.01.
        verdict = "" if error < torch.finfo(inputs.out_dtype).eps + 5e-4 else "  WRONG"
        is_chosen = tile == chosen
        line(describe(tile), seconds, f"error {error:.1e}{verdict}{'  <- chosen' if is_chosen else ''}")
        times.append(seconds)
        chosen_seconds = seconds if is_chosen else chosen_seconds
    sys.stdout.flush()
    return library, chosen_seconds, min(times)


def compile_some(product: Product, rows: Sequence[int], share: int) -> None:
    """Every COMPILERS-th kernel of a product, into Triton's cache; the results are thrown away."""
    weight = torch.zeros(product.num_out, product.num_in, dtype=DTYPE, device=DEVICE)
    wanted = dict.fromkeys((num_rows, tile) for num_rows in rows for tile in tiles(num_rows, product))
    for num_rows, tile in itertools.islice(wanted, share, None, COMPILERS):
        x = torch.zeros(num_rows, product.num_in, dtype=DTYPE, device=DEVICE)
        inputs = Inputs(product, [weight], x)
        try:
            run(inputs, weight, make_workspace(tile, product.num_out), tile, make_out(inputs))
        except triton.runtime.errors.OutOfResources:
            continue  # said when it is measured
    if not DRY:
        torch.cuda.synchronize()


def compile_all(products: Sequence[Product], rows: Sequence[int]) -> None:
    with ProcessPoolExecutor(COMPILERS, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(compile_some, product, rows, share) for product in products for share in range(COMPILERS)]
        for job in jobs:
            job.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="M")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    products = [product for model in arguments.models for product in MODELS[model]]
    ceilings = measure_apart(DEVICE)
    bandwidth = float(ceilings["read_bytes_per_second"])
    print(f"{ceilings['device']}, torch {torch.__version__}, triton {triton.__version__}, {DTYPE}")
    print(f"read {bandwidth / 1e9:.0f} GB/s", flush=True)
    if not DRY:
        compile_all(products, arguments.rows)
    elements = max(max(2 * p.weight_bytes, COLD_BYTES + p.weight_bytes) for p in products) // DTYPE.itemsize
    memory = torch.empty(elements, dtype=DTYPE, device=DEVICE).normal_()
    sums = []
    for model, num_rows in itertools.product(arguments.models, arguments.rows):
        print(f"\n{model}, M = {num_rows}")
        # The projection to logits is near the limit anyhow: two numbers of rows tell that.
        todo = [product for product in MODELS[model] if not product.logits or num_rows in (1, 16)]
        results = [(product, sweep(make_inputs(memory, product, num_rows), bandwidth)) for product in todo]
        layer = [times for product, times in results if not product.logits]
        library, chosen, best = (sum(times) * 1e6 for times in zip(*layer, strict=True))
        floor = sum(p.weight_bytes for p in todo if not p.logits) / bandwidth * 1e6
        sums.append(
            f"{model:12} M={num_rows:<3} torch {library:7.1f}  chosen {chosen:7.1f}  best {best:7.1f}  "
            f"weights read at the measured bandwidth {floor:7.1f}"
        )
    print("\nA layer's products and its activation, µs:", *sums, sep="\n")


if __name__ == "__main__":
    main()
