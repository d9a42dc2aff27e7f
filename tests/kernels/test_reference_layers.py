"""Norms, activation, RoPE and packed linear layers against float64 arithmetic, at odd shapes."""

import pytest
import torch

from kernels import reference
from kernels.cpu import packed_linear
from kernels.cpu.packed_linear import linear, logits, pack_weight

SHAPES = [(1, 3), (5, 17), (33, 64), (7, 129)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def naive_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[1])
    torch.testing.assert_close(
        reference.rms_norm(x, weight, 1e-5).double(), naive_rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_sums_into_the_residual(shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    wanted = x + residual
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, wanted)
    torch.testing.assert_close(normed.double(), naive_rms_norm(wanted, weight, 1e-6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gather_add_rms_norm_leaves_its_inputs_alone(shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    before = x.clone(), residual.clone()
    indices = torch.randint(shape[0], (4,))
    got = reference.gather_add_rms_norm(x, residual, indices, weight, 1e-6)
    torch.testing.assert_close(
        got.double(), naive_rms_norm((x + residual)[indices], weight, 1e-6), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_embed_picks_rows_and_logits_are_float32() -> None:
    weight, input_ids = torch.randn(11, 6).to(torch.bfloat16), torch.tensor([10, 0, 3, 3])
    hidden = reference.embed(weight, input_ids)
    assert torch.equal(hidden, weight[input_ids])
    got = logits(hidden, pack_weight(weight))
    assert got.dtype == torch.float32
    wanted = hidden.double() @ weight.double().T
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_act_and_mul(rows: int, size: int) -> None:
    gate_up = torch.randn(rows, 2 * size) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    wanted = {
        "silu": gate / (1 + torch.exp(-gate)),
        "gelu": gate / 2 * (1 + torch.erf(gate / 2**0.5)),
        "gelu_tanh": gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))),
    }
    for activation, activated in wanted.items():
        got = reference.act_and_mul(gate_up, activation)
        torch.testing.assert_close(got.double(), activated * up, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_tokens", "num_heads", "head_dim"), [(1, 1, 2), (5, 3, 6), (17, 4, 64)])
def test_rope_rotates_pairs_of_halves(num_tokens: int, num_heads: int, head_dim: int) -> None:
    half = head_dim // 2
    angles = torch.randn(50, half, dtype=torch.float64)
    table = torch.cat((angles.cos(), angles.sin()), -1).float()
    positions = torch.randint(50, (num_tokens,))
    x = torch.randn(num_tokens, num_heads, head_dim)
    # A rotation of the plane is a multiplication by exp(i angle).
    plane = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = plane * torch.polar(torch.ones(num_tokens, 1, half, dtype=torch.float64), angles[positions][:, None])
    wanted = torch.cat((turned.real, turned.imag), -1)
    got = reference.rope(x, reference.gather_rope(table, positions))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 3, 5), (7, 31, 17), (70, 64, 130), (0, 8, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_linear(dtype: torch.dtype, rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    with torch.inference_mode():
        got = linear(x, pack_weight(weight), bias)
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    tolerance = 1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * inputs**0.5)


def test_a_torch_without_the_packing_operations_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_OPERATIONS", ("_reorder_linear_weight", "_gone"))
    x, weight = torch.randn(5, 7), torch.randn(3, 7)
    packed = pack_weight(weight)
    assert not packed.opaque
    torch.testing.assert_close(linear(x, packed, None), x @ weight.T)
