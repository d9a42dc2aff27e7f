"""What a row of the kernel benchmark is made of: the calls to be timed, what they move or compute, and a check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

COLD_BYTES = 256 * 2**20
"""Input sets together hold more than this, several times a GPU's second-level cache, or there are MAX_SETS of them."""
MAX_SETS = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One kernel at one shape."""

    label: str
    calls: Sequence[Callable[[], object]]
    """The same work on several sets of inputs."""
    check: Callable[[], None]
    """Runs the kernel on poisoned outputs and raises `AssertionError` where the result is not the reference's."""
    work: float
    """Bytes read and written, or floating-point operations, of one call."""
    bound: Literal["read", "copy", "matmul"]
    """Which measured ceiling it is compared with."""


@dataclass(frozen=True)
class Bench:
    """Where the rows run. `dry`: tiny shapes, to see that everything works."""

    device: str
    dry: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of models. Triton's interpreter multiplies bfloat16 wrongly, so trials without a GPU use float32."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def pick(self, full: T, tiny: T) -> T:
        return tiny if self.dry else full

    def num_sets(self, bytes_per_set: int) -> int:
        """How many sets of inputs keep the caches cold. Sets of a few KB stay in them, as they do when serving."""
        return 2 if self.dry else max(2, min(MAX_SETS, COLD_BYTES // bytes_per_set + 1))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def poisoned(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory for a result in which everything that is not written shows: NaN, or -1 for integers."""
        kind = dtype or self.dtype
        poison = torch.nan if kind.is_floating_point else -1
        return torch.full(shape, poison, device=self.device, dtype=kind)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, summands: float = 0.0) -> None:
    """Equal within two steps of `dtype`, of the number itself or of a typical one (results of cancellation).

    `summands`: how large the numbers are that a result is the float32 sum of; eight steps of those are allowed too.
    """
    eps = 2 * torch.finfo(dtype).eps
    expected = expected.double()
    typical = expected.square().mean().sqrt().item()
    accumulated = 8 * torch.finfo(torch.float32).eps * summands
    torch.testing.assert_close(actual.double(), expected, rtol=eps, atol=eps * typical + accumulated)
