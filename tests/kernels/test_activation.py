"""The gated activations against the references in float64, at odd shapes, into poisoned memory."""

from tests.kernels.device import DEVICE  # isort: skip

from collections.abc import Callable
from functools import partial

import pytest
import torch

from kernels import activation, reference

# An exponential that becomes infinite is meant; numpy, in the interpreter, warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")

SHAPES = [(1, 1), (3, 17), (70, 33), (5, 1000), (3, 1024), (2, 2600)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Activation = Callable[..., torch.Tensor]
CASES: dict[str, tuple[Activation, Activation]] = {
    "silu": (activation.silu_and_mul, reference.silu_and_mul),
    "gelu": (partial(activation.gelu_and_mul, approximate="none"), partial(reference.gelu_and_mul, approximate="none")),
    "gelu_tanh": (
        partial(activation.gelu_and_mul, approximate="tanh"),
        partial(reference.gelu_and_mul, approximate="tanh"),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_gated_activations(case: str, num_rows: int, size: int, dtype: torch.dtype) -> None:
    kernel, oracle = CASES[case]
    wide = torch.full((num_rows, 2 * size + 16), torch.nan, dtype=dtype, device=DEVICE)
    gate_up = wide[:, 8:-8]
    gate_up.copy_(torch.randn(num_rows, 2 * size) * 3)
    memory = torch.full((num_rows + 2, size), torch.nan, dtype=dtype, device=DEVICE)
    out = memory[1:-1]
    assert kernel(gate_up, out=out) is out
    # One rounding to the type; beside it float32's own error, in the sum 1 + erf relative to 1.
    rtol = max(torch.finfo(dtype).eps, 4e-6)
    torch.testing.assert_close(out.double().cpu(), oracle(gate_up.double().cpu()), rtol=rtol, atol=4e-6)
    assert memory[[0, -1]].isnan().all()
    assert torch.equal(kernel(gate_up), out)


@pytest.mark.parametrize("case", CASES)
def test_far_from_zero_the_gate_is_all_or_nothing(case: str) -> None:
    gate_up = torch.tensor([[-3e38, -1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    assert CASES[case][0](gate_up).tolist() == [[0.0, 0.0, 0.0, 100.0, 1e4]]


@pytest.mark.parametrize("case", CASES)
def test_no_rows(case: str) -> None:
    assert CASES[case][0](torch.empty(0, 12, device=DEVICE)).shape == (0, 6)
