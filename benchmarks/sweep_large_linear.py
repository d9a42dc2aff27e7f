"""Products of many rows, ours on wgmma beside cuBLAS and cuBLASLt, while the GPU is as busy as in prefill.

    python -m benchmarks.sweep_large_linear                  # on one Hopper GPU, about a minute
    python -m benchmarks.sweep_large_linear --rows 8192 --models "Llama 8B" --products gate-up
    python -m benchmarks.sweep_large_linear --dry            # tiny, on a CPU, where ours is not: does it run at all

Large products run into the power limit, so a side's clock depends on what ran before it. Every side is a CUDA graph of
some 10 ms over several weights in turn; each is replayed for 100 ms at a stretch, the sides alternate, and a side's
time is the median of its stretches. Gate-up is timed with its activation: in the same launch by ours, as a second
launch beside cuBLAS. Rates count the product's operations alone. Before it is timed, every side's result, on poisoned
memory, is compared with float64 arithmetic at some rows and output features.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton

from kernels.activation import act_and_mul
from kernels.hopper_linear import DEFAULT_TILING, LargeTiling, hopper_linear, supports
from kernels.reference import act_and_mul as reference_act_and_mul

ROWS = (512, 1024, 2048, 4096, 8192)
GRAPH_SECONDS = 10e-3
STRETCH_SECONDS = 0.1
STRETCHES = 2
NUM_WEIGHTS = 3
NUM_CHECKED = 64
"""Rows, and output features."""
TILINGS = (
    DEFAULT_TILING,
    LargeTiling(lead=1),
    LargeTiling(lead=3),
    LargeTiling(group=8),
    LargeTiling(group=32),
    LargeTiling(num_stages=3),
)
"""All are tried where --tilings is given, else the first two."""


@dataclass(frozen=True, slots=True)
class Product:
    """A weight [num_out, num_in] and what is done with it."""

    name: str
    num_out: int
    num_in: int
    activation: str | None = None


MODELS = {
    "Llama 8B": (
        Product("gate-up", 28672, 4096, "silu"),
        Product("down", 4096, 14336),
        Product("QKV", 6144, 4096),
        Product("O", 4096, 4096),
    ),
    "Qwen3 0.6B": (
        Product("gate-up", 6144, 1024, "silu"),
        Product("down", 1024, 3072),
        Product("QKV", 4096, 1024),
        Product("O", 1024, 2048),
    ),
    "Gemma 2 9B": (
        Product("gate-up", 28672, 3584, "gelu_tanh"),
        Product("down", 3584, 14336),
        Product("QKV", 8192, 3584),
        Product("O", 3584, 4096),
    ),
}


@dataclass(frozen=True, slots=True)
class Side:
    """One way to compute a product."""

    name: str
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    library: str = ""  # which of torch's libraries it asks for


def sides(product: Product, device: torch.device, tilings: Sequence[LargeTiling]) -> Iterator[Side]:
    """What is compared, the baseline first."""
    activate = act_and_mul if device.type == "cuda" else reference_act_and_mul

    def library(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result = F.linear(x, weight)
        return activate(result, product.activation) if product.activation else result

    def ours(tiling: LargeTiling) -> Side:
        name = f"ours group {tiling.group} stages {tiling.num_stages} lead {tiling.lead}"
        return Side(name, lambda x, weight: hopper_linear(x, weight, activation=product.activation, tiling=tiling))

    yield Side("cublas", library, "cublas")
    yield Side("cublaslt", library, "cublaslt")
    if supports(device, torch.bfloat16, product.num_out, product.num_in, gated=product.activation is not None):
        yield from map(ours, tilings)


def prefer(side: Side) -> None:
    """Tells torch which library to take; it is asked when a graph is captured."""
    if side.library and torch.cuda.is_available():
        torch.backends.cuda.preferred_blas_library(side.library)


def largest_error(product: Product, x: torch.Tensor, weight: torch.Tensor, got: torch.Tensor) -> float:
    """At some rows, the last among them, and output features, relative to the number or to 0.1; most are about 1."""
    rows = torch.randint(len(x), (NUM_CHECKED,), device=x.device)
    rows[0] = len(x) - 1
    features = torch.randint(got.shape[1], (NUM_CHECKED,), device=x.device)
    features[0] = got.shape[1] - 1
    few = x[rows].double()
    wanted = few @ weight[features].double().T
    if product.activation:
        # The library rounds gate and up in between, which is its error.
        up = few @ weight[features + got.shape[1]].double().T
        wanted = reference_act_and_mul(torch.cat((wanted, up), dim=-1), product.activation)
    if got.isnan().any():
        return float("nan")
    return float(((got[rows][:, features].double() - wanted).abs() / (wanted.abs() + 0.1)).max())


def poison(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """What the allocator gives out next for a result of this shape is full of NaN."""
    torch.full(shape, torch.nan, dtype=dtype, device=device)


class Timed:
    """A side's calls over all weights, as one graph on a GPU."""

    def __init__(self, side: Side, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
        self._calls = [lambda w=weight: side.call(x, w) for weight in weights]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rounds = 1
        self.seconds: list[float] = []
        prefer(side)
        once = self._stretch(2)
        if x.device.type == "cuda":
            self._rounds = max(1, int(GRAPH_SECONDS / (once * len(weights))))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(self._rounds):
                    self._run_calls()
            graph.replay()  # the first one uploads it
            self._graph = graph

    def _run_calls(self) -> None:
        for call in self._calls:
            call()

    def _stretch(self, repeats: int) -> float:
        """Seconds of one call."""
        run = self._graph.replay if self._graph is not None else self._run_calls
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / (repeats * self._rounds * len(self._calls))

    def measure(self) -> None:
        """One stretch more; what it takes until the clock has settled is part of the work before it."""
        per_replay = self._rounds * len(self._calls) * (self.seconds[-1] if self.seconds else self._stretch(1))
        self.seconds.append(self._stretch(max(1, int(STRETCH_SECONDS / per_replay))))


def sweep(product: Product, x: torch.Tensor, weights: Sequence[torch.Tensor], tilings: Sequence[LargeTiling]) -> None:
    """Prints a line for each side."""
    timed, errors = [], []
    for side in sides(product, x.device, tilings):
        prefer(side)
        poison((len(x), product.num_out // (2 if product.activation else 1)), x.dtype, x.device)
        errors.append(largest_error(product, x, weights[0], side.call(x, weights[0])))
        timed.append((side, Timed(side, x, weights)))
    for _ in range(STRETCHES):
        for _, each in timed:
            each.measure()
    baseline = min(statistics.median(each.seconds) for side, each in timed if side.library)
    for (side, each), error in zip(timed, errors, strict=True):
        seconds = statistics.median(each.seconds)
        rate = 2 * len(x) * product.num_out * product.num_in / seconds
        allowed = torch.finfo(x.dtype).eps * (3 if side.library and product.activation else 1) + 1e-3
        print(
            f"{product.name:8} M={len(x):<6} {side.name:32} {seconds * 1e6:9.1f} µs {rate / 1e12:6.1f} TFLOP/s "
            f"{baseline / seconds:7.1%} of the library's speed  error {error:.1e}{'' if error < allowed else '  WRONG'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, metavar="M")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--products", nargs="+", choices=[p.name for p in MODELS["Llama 8B"]], metavar="NAME")
    parser.add_argument("--tilings", action="store_true", help="all tilings of our kernel")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cpu" if arguments.dry else "cuda")
    name = "CPU" if arguments.dry else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    tilings = TILINGS if arguments.tilings else TILINGS[:2]
    rows = arguments.rows or ((16, 33) if arguments.dry else ROWS)
    begin = time.perf_counter()
    for model in arguments.models:
        print(f"\n{model}")
        for product in MODELS[model]:
            if arguments.products and product.name not in arguments.products:
                continue
            if arguments.dry:
                product = Product(product.name, product.num_out // 64, product.num_in // 64, product.activation)
            shape = (product.num_out, product.num_in)
            weights = [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(NUM_WEIGHTS)]
            for num_rows in rows:
                # Results of about 1, as in a model whose weights are small and whose inputs are not.
                x = (torch.randn(num_rows, product.num_in, device=device) * product.num_in**-0.5).to(torch.bfloat16)
                sweep(product, x, weights, tilings)
                print(f"{'':8} {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
