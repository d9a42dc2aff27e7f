"""Rows of the matrix products of a Llama-3.1-8B layer, through torch: what the layers call, and the ceiling of what a
kernel of our own could win. Weights rotate over 8 layers. Up to 128 rows are compared with the read bandwidth, more
with the matrix rate."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows.case import Bench, Case, assert_near

SHAPES = {"QKV": (6144, 4096), "O": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336)}
"""Output and input features."""
NUM_LAYERS = 8
MOST_READ_BOUND_ROWS = 128
NUM_CHECKED_ROWS = 4


def linear(bench: Bench) -> Iterator[Case]:
    shapes = bench.pick(SHAPES, {"QKV": (48, 32), "down": (32, 48)})
    num_layers = bench.pick(NUM_LAYERS, 2)
    # As large as trained weights are, so that products of random numbers stay in range.
    weights = {
        name: [bench.randn(*shape) * shape[1] ** -0.5 for _ in range(num_layers)] for name, shape in shapes.items()
    }
    for num_rows in bench.pick((1, 16, 64, 128, 256, 512, 2048, 8192), (1, 5)):
        inputs = {name: bench.randn(num_rows, shape[1]) for name, shape in shapes.items()}
        layer_calls: list[Callable[[], object]] = []
        layer_work = 0.0
        for name, shape in shapes.items():
            calls = [lambda x=inputs[name], w=weight: F.linear(x, w) for weight in weights[name]]
            layer_calls += calls
            work = _work(bench, num_rows, *shape)
            layer_work += work
            x, weight = inputs[name], weights[name][-1]

            def check(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                expected = x[:NUM_CHECKED_ROWS].float() @ weight.float().T
                assert_near(F.linear(x, weight)[:NUM_CHECKED_ROWS], expected, bench.dtype)

            yield Case(f"{name}, M = {num_rows}", calls, check, work, _bound(num_rows))
        # The median is that of one product, so the layer's work is spread over its products.
        mean = layer_work / len(shapes)
        yield Case(f"mean of a layer, M = {num_rows}", layer_calls, check, mean, _bound(num_rows))


def _bound(num_rows: int) -> str:
    return "read" if num_rows <= MOST_READ_BOUND_ROWS else "matmul"


def _work(bench: Bench, num_rows: int, num_out: int, num_in: int) -> float:
    """Bytes of weights, input and output, or operations."""
    if _bound(num_rows) == "matmul":
        return 2.0 * num_rows * num_out * num_in
    return float((num_out * num_in + num_rows * (num_in + num_out)) * bench.dtype.itemsize)
