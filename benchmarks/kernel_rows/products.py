"""Rows of the matrix products of a Llama-3.1-8B layer: as the layers call them, and through torch alone (cuBLAS).

Gate-up is multiplied with its activation where the layers do so. Weights rotate over 8 layers. Up to 128 rows are
compared with the read bandwidth, more with the matrix rate. "A layer" is its four products one after the other, as in a
step: where the device can, each begins while the one before ends (kernels/programmatic.py)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows.case import Bench, Case, assert_near

SHAPES = {"QKV": (6144, 4096), "O": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336)}
"""Output and input features."""
GATED = "gate-up"
NUM_LAYERS = 8
MOST_READ_BOUND_ROWS = 128
NUM_CHECKED_ROWS = 4

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of x [M, K] and weight [N, K]."""


def linear(bench: Bench) -> Iterator[Case]:
    from kernels import cuda

    packed: dict[int, cuda.PackedWeight] = {}

    def pack(weight: torch.Tensor) -> cuda.PackedWeight:
        return packed.setdefault(weight.data_ptr(), cuda.pack_weight(weight))

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return cuda.linear(x, pack(weight), None)

    def gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return cuda.linear_act_and_mul(x, pack(weight), None, "silu")

    yield from _products(bench, plain, gated)


def library_linear(bench: Bench) -> Iterator[Case]:
    yield from _products(bench, F.linear, None)


def _products(bench: Bench, plain: Product, gated: Product | None) -> Iterator[Case]:
    """`gated`: silu(first half) · second half of the product with gate and up; None: `plain` has it too."""
    shapes = bench.pick(SHAPES, {"QKV": (48, 32), GATED: (64, 32), "down": (32, 48)})
    num_layers = bench.pick(NUM_LAYERS, 2)
    # As large as trained weights are, so that products of random numbers stay in range.
    weights = {
        name: [bench.randn(*shape) * shape[1] ** -0.5 for _ in range(num_layers)] for name, shape in shapes.items()
    }
    for num_rows in bench.pick((1, 16, 64, 128, 256, 512, 2048, 8192), (1, 5)):
        inputs = {name: bench.randn(num_rows, shape[1]) for name, shape in shapes.items()}
        products = {name: gated if gated and name == GATED else plain for name in shapes}
        checks = []
        for name, shape in shapes.items():
            product, x = products[name], inputs[name]

            def check(
                product: Product = product, x: torch.Tensor = x, weight: torch.Tensor = weights[name][-1]
            ) -> None:
                expected = x[:NUM_CHECKED_ROWS].float() @ weight.float().T
                if product is gated:
                    first, second = expected.chunk(2, 1)
                    expected = F.silu(first) * second
                assert_near(product(x, weight)[:NUM_CHECKED_ROWS], expected, bench.dtype)

            calls = [lambda product=product, x=x, w=weight: product(x, w) for weight in weights[name]]
            checks.append(check)
            yield Case(f"{name}, M = {num_rows}", calls, check, _work(bench, num_rows, *shape), _bound(num_rows))

        parts = [(products[name], inputs[name], weights[name]) for name in shapes]
        layers = [partial(_run_layer, parts, layer) for layer in range(num_layers)]
        work = sum(_work(bench, num_rows, *shape) for shape in shapes.values())
        yield Case(f"a layer, M = {num_rows}", layers, partial(_run_all, checks), work, _bound(num_rows))


def _run_layer(parts: Sequence[tuple[Product, torch.Tensor, Sequence[torch.Tensor]]], layer: int) -> None:
    for product, x, weights in parts:
        product(x, weights[layer])


def _run_all(checks: Sequence[Callable[[], None]]) -> None:
    for check in checks:
        check()


def _bound(num_rows: int) -> str:
    return "read" if num_rows <= MOST_READ_BOUND_ROWS else "matmul"


def _work(bench: Bench, num_rows: int, num_out: int, num_in: int) -> float:
    """Bytes of weights, input and output, or operations."""
    if _bound(num_rows) == "matmul":
        return 2.0 * num_rows * num_out * num_in
    return float((num_out * num_in + num_rows * (num_in + num_out)) * bench.dtype.itemsize)
