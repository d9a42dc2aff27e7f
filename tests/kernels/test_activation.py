"""The gated activations against the references in float64, at odd shapes, into poisoned memory."""

from tests.kernels.device import DEVICE  # isort: skip

import pytest
import torch

from kernels import reference
from kernels.activation import act_and_mul

# An exponential that becomes infinite is meant; numpy, in the interpreter, warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")

SHAPES = [(1, 1), (3, 17), (70, 33), (5, 1000), (3, 1024), (2, 2600)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_activations(activation: str, num_rows: int, size: int, dtype: torch.dtype) -> None:
    wide = torch.full((num_rows, 2 * size + 16), torch.nan, dtype=dtype, device=DEVICE)
    gate_up = wide[:, 8:-8]
    gate_up.copy_(torch.randn(num_rows, 2 * size) * 3)
    memory = torch.full((num_rows + 2, size), torch.nan, dtype=dtype, device=DEVICE)
    out = memory[1:-1]
    assert act_and_mul(gate_up, activation, out) is out
    # One rounding to the type; beside it float32's own error, in the sum 1 + erf relative to 1.
    rtol = max(torch.finfo(dtype).eps, 4e-6)
    torch.testing.assert_close(
        out.double().cpu(), reference.act_and_mul(gate_up.double().cpu(), activation), rtol=rtol, atol=4e-6
    )
    assert memory[[0, -1]].isnan().all()
    assert torch.equal(act_and_mul(gate_up, activation), out)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_from_zero_the_gate_is_all_or_nothing(activation: str) -> None:
    gate_up = torch.tensor([[-3e38, -1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    assert act_and_mul(gate_up, activation).tolist() == [[0.0, 0.0, 0.0, 100.0, 1e4]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_rows(activation: str) -> None:
    assert act_and_mul(torch.empty(0, 12, device=DEVICE), activation).shape == (0, 6)
