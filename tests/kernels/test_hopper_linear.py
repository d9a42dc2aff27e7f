"""Products of many rows on wgmma against float64; there is no interpreter for what they are written in."""

import pytest
import torch

from tests.kernels.device import DEVICE
from tests.kernels.test_skinny_linear import expected

from kernels import cuda, hopper_linear  # isort: skip  (after the device is known)
from kernels.hopper_linear import LargeTiling  # isort: skip

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability()[0] != 9, reason="wgmma is in Hopper GPUs alone"
)


def make(num_rows: int, num_out: int, num_in: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x with poisoned gaps between its rows; weight."""
    torch.manual_seed(num_rows + num_out + num_in)
    wide = torch.full((num_rows, num_in + 24), torch.nan, dtype=dtype, device=DEVICE)
    x = wide[:, 8 : 8 + num_in]
    x.copy_(torch.randn(num_rows, num_in))
    return x, (torch.randn(num_out, num_in) * num_in**-0.5).to(DEVICE, dtype)


def check(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    activation: str | None,
    tiling: LargeTiling = hopper_linear.DEFAULT_TILING,
) -> None:
    """Twice, into the middle of poisoned memory, with the same bits."""
    x, weight = make(*shape, dtype)
    num_rows, num_out, num_in = shape
    memory = torch.full((num_rows + 2, num_out // 2 if activation else num_out), torch.nan, dtype=dtype, device=DEVICE)
    out = memory[1:-1]
    assert hopper_linear.hopper_linear(x, weight, activation=activation, out=out, tiling=tiling) is out
    eps, sum_error = torch.finfo(dtype).eps, 8 * torch.finfo(torch.float32).eps * num_in**0.5
    torch.testing.assert_close(out.double(), expected(x, weight, None, activation), rtol=eps, atol=sum_error)
    assert memory[[0, -1]].isnan().all()
    assert torch.equal(out, hopper_linear.hopper_linear(x, weight, activation=activation, tiling=tiling))


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 64, 127, 128, 129, 700])
def test_rows(num_rows: int, dtype: torch.dtype, activation: str | None) -> None:
    check((num_rows, 1024, 512), dtype, activation=activation)


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("num_out", [16, 240, 256, 272, 1040, 5008])
@pytest.mark.parametrize("num_in", [256, 320, 1088])
def test_features(num_out: int, num_in: int, activation: str | None) -> None:
    check((300, num_out, num_in), torch.bfloat16, activation=activation)


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize(
    "tiling",
    [LargeTiling(1, 4, 2), LargeTiling(3, 4, 1), LargeTiling(8, 4, 3), LargeTiling(16, 3, 1), LargeTiling(5, 2, 1)],
)
def test_tilings(tiling: LargeTiling, activation: str | None) -> None:
    check((1700, 6144, 320), torch.bfloat16, activation=activation, tiling=tiling)


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
def test_many_tiles_of_a_program(activation: str | None) -> None:
    """Far more tiles than programs: stages, phases and the store's memory are used again and again."""
    check((4100, 8192, 1024), torch.bfloat16, activation=activation)


def test_large_numbers_of_the_gate() -> None:
    """exp(-gate) becomes infinite, and silu zero."""
    x, weight = make(200, 512, 256, torch.bfloat16)
    x *= 1000
    got = hopper_linear.hopper_linear(x, weight, activation="silu")
    wanted = expected(x, weight, None, "silu")
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(torch.bfloat16).eps, atol=1.0)


def test_layers_use_it() -> None:
    """Where all programs of all waves have a tile, and not where most of a wave is idle."""
    num_rows = 128 * hopper_linear.num_programs(torch.device("cuda", 0)) // 12
    x, weight = make(num_rows, 6144, 1024, torch.bfloat16)
    assert cuda.is_fused(num_rows, 6144, 1024, x.device, x.dtype)
    assert not cuda.is_fused(128, 6144, 1024, x.device, x.dtype)
    got = cuda.linear_act_and_mul(x, cuda.pack_weight(weight), None, "silu")
    assert torch.equal(got, hopper_linear.hopper_linear(x, weight, activation="silu"))


def test_products_launched_in_a_row() -> None:
    """Each starts while the one before ends, and reads what that one wrote."""
    x, weight = make(640, 1024, 1024, torch.bfloat16)
    wanted = x
    for _ in range(20):
        wanted = hopper_linear.hopper_linear(wanted, weight)
        torch.cuda.synchronize()
    for _ in range(20):
        got = x
        for _ in range(20):
            got = hopper_linear.hopper_linear(got, weight)
        assert torch.equal(got, wanted)
