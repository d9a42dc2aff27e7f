"""Products of few rows against float64 arithmetic: odd shapes, parts of K, gated pairs, strides, poisoned memory."""

from tests.kernels.device import DEVICE  # isort: skip

from dataclasses import replace

import pytest
import torch

from kernels import cuda, programmatic
from kernels.reference import act_and_mul
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import (
    ALIGNMENT,
    MAX_ROWS,
    SkinnyTile,
    SkinnyWorkspace,
    choose,
    make_skinny_workspace,
)

# An exponential that becomes infinite is meant; numpy, in the interpreter, warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")

ACTIVATIONS = [None, "silu", "gelu_tanh"]
VECTOR = SkinnyTile(1, 4, 256, num_warps=1, num_stages=1)
MATRIX = SkinnyTile(16, 16, 32, num_warps=1, num_stages=2)
# The interpreter multiplies bf16 operands of tl.dot wrongly.
MATRIX_DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
VECTOR_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_workspace(tile: SkinnyTile, num_out: int) -> SkinnyWorkspace:
    """Just as large as it must be, its partial sums poisoned."""
    return SkinnyWorkspace(
        partials=torch.full((tile.num_partials(num_out),), torch.nan, device=DEVICE),
        arrivals=torch.zeros(tile.num_tiles(num_out), dtype=torch.int32, device=DEVICE),
    )


def make_inputs(
    num_rows: int, num_out: int, num_in: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x with poisoned gaps between its rows; weight; bias."""
    wide = torch.full((num_rows, num_in + 24), torch.nan, dtype=dtype, device=DEVICE)
    x = wide[:, 8 : 8 + num_in]
    x.copy_(torch.randn(num_rows, num_in))
    weight, bias = torch.randn(num_out, num_in) * num_in**-0.5, torch.randn(num_out)
    return x, weight.to(DEVICE, dtype), bias.to(DEVICE, dtype)


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None) -> torch.Tensor:
    product = x.double() @ weight.double().T
    if bias is not None:
        product = product + bias.double()
    return product if activation is None else act_and_mul(product, activation)


def check(
    tile: SkinnyTile, shape: tuple[int, int, int], dtype: torch.dtype, *, bias: bool, activation: str | None
) -> None:
    """One product, twice over the same workspace, into the middle of poisoned memory."""
    num_rows, num_out, num_in = shape
    x, weight, bias_vector = make_inputs(*shape, dtype)
    given_bias = bias_vector if bias else None
    workspace = make_workspace(tile, num_out)
    memory = torch.full((num_rows + 2, num_out // 2 if activation else num_out), torch.nan, dtype=dtype, device=DEVICE)
    out = memory[1:-1]
    assert skinny_linear(x, weight, given_bias, workspace, tile, activation=activation, out=out) is out
    # The rounding of the result, and float32's in a sum of `num_in` products that is itself about 1, which walks at
    # random: of some thousand results one or the other is four standard deviations off.
    eps, sum_error = torch.finfo(dtype).eps, 4 * torch.finfo(torch.float32).eps * num_in**0.5
    torch.testing.assert_close(out.double(), expected(x, weight, given_bias, activation), rtol=eps, atol=sum_error)
    assert memory[[0, -1]].isnan().all()
    assert not workspace.arrivals.any()
    assert torch.equal(skinny_linear(x, weight, given_bias, workspace, tile, activation=activation), out)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
@pytest.mark.parametrize(("num_out", "num_in"), [(2, 16), (6, 256), (14, 1000), (66, 520), (22, 77)])
@pytest.mark.parametrize(("block_m", "num_rows"), [(1, 1), (2, 1), (2, 2)])
def test_one_row_and_two(
    block_m: int, num_rows: int, num_out: int, num_in: int, dtype: torch.dtype, activation: str | None
) -> None:
    tile, shape = replace(VECTOR, block_m=block_m), (num_rows, num_out, num_in)
    check(tile, shape, dtype, bias=activation is not None, activation=activation)
    check(replace(tile, block_n=2, block_k=512, num_warps=2, num_stages=3), shape, dtype,
          bias=activation is None, activation=activation)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
@pytest.mark.parametrize("num_in", [16, 256, 512, 1000])
@pytest.mark.parametrize("holds_first_tile", [False, True])
@pytest.mark.parametrize("block_m", [1, 2])
def test_early_reading_of_the_weight(
    block_m: int,
    num_in: int,
    dtype: torch.dtype,
    activation: str | None,
    holds_first_tile: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where kernels may start early: one tile and several, the first one held or not."""
    monkeypatch.setattr("kernels.skinny_linear.may_overlap", lambda: True)
    monkeypatch.setattr(programmatic.settings, "holds_first_tile", holds_first_tile)
    tile = replace(VECTOR, block_m=block_m)
    check(tile, (block_m, 14, num_in), dtype, bias=activation is not None, activation=activation)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", MATRIX_DTYPES)
@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize(("num_rows", "num_out", "num_in"), [(1, 2, 16), (2, 32, 320), (7, 38, 200), (16, 18, 77)])
def test_several_rows(
    num_rows: int, num_out: int, num_in: int, split: int, dtype: torch.dtype, activation: str | None
) -> None:
    tile = replace(MATRIX, split=split)
    check(tile, (num_rows, num_out, num_in), dtype, bias=split == 2, activation=activation)


@pytest.mark.slow
@pytest.mark.parametrize("block_m", [8, 32])
@pytest.mark.parametrize("dtype", MATRIX_DTYPES)
def test_other_tiles(block_m: int, dtype: torch.dtype) -> None:
    tile = SkinnyTile(block_m, 64, 64, num_warps=4, num_stages=3, split=3)
    for num_rows in (block_m - 3, block_m):
        check(tile, (num_rows, 100, 400), dtype, bias=True, activation="silu")


@pytest.mark.parametrize("tile", [VECTOR, replace(MATRIX, split=2)])
def test_float32_results_are_not_rounded(tile: SkinnyTile) -> None:
    """As logits need them: two sums that differ by less than float16 can tell stay different."""
    x = torch.tensor([[1.0, 2.0**-14] + [0.0] * 62], dtype=torch.float16, device=DEVICE)
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float16, device=DEVICE)
    weight = torch.nn.functional.pad(weight, (0, 62)).contiguous()
    out = torch.empty(1, 2, device=DEVICE)
    skinny_linear(x, weight, None, make_workspace(tile, 2), tile, out=out)
    assert out.tolist() == [[1.0, 1.0 + 2.0**-14]]


def test_gates_far_from_zero() -> None:
    x, weight = torch.ones(1, 1), torch.tensor([[-3e38], [-100.0], [100.0], [1e4], [1.0], [1.0], [2.0], [1.0]])
    for tile in (VECTOR, replace(MATRIX, split=2)):
        workspace = make_workspace(tile, 8)
        out = skinny_linear(x.to(DEVICE), weight.to(DEVICE), None, workspace, tile, activation="silu")
        assert out.tolist() == [[0.0, 0.0, 200.0, 1e4]]


def test_every_choice_fits_into_the_workspace() -> None:
    workspace = make_skinny_workspace("cpu")
    for num_out in (16, 96, 1024, 4096, 6144, 28672, 151936):
        for num_in in (16, 512, 1024, 3072, 3584, 4096, 14336):
            for num_rows in range(1, MAX_ROWS + 1):
                tile = choose(num_rows, num_out, num_in, torch.bfloat16)
                assert tile is not None
                assert tile.block_m >= num_rows
                assert tile.num_partials(num_out) <= workspace.partials.numel()
                assert tile.split == 1 or tile.num_tiles(num_out) <= workspace.arrivals.numel()
                # No part of K is empty.
                assert (tile.split - 1) * -(-num_in // (tile.split * tile.block_k)) * tile.block_k < num_in


@pytest.mark.parametrize(
    ("num_rows", "num_out", "num_in", "is_vector"),
    [
        (1, 28672, 3584, True),
        (2, 28672, 3584, False),  # Gemma 2 9B: some threads of the vector kernel would be idle
        (2, 3584, 14336, True),
        (2, 28672, 4096, True),
        (2, 13824, 1152, True),  # Gemma 3 1B: small
        (3, 28672, 4096, False),
    ],
)
def test_which_units_multiply(num_rows: int, num_out: int, num_in: int, is_vector: bool) -> None:
    tile = choose(num_rows, num_out, num_in, torch.bfloat16)
    assert tile is not None
    assert tile.is_vector == is_vector


def test_what_is_left_to_the_library() -> None:
    assert choose(0, 64, 64, torch.bfloat16) is None
    assert choose(MAX_ROWS + 1, 64, 64, torch.bfloat16) is None
    assert choose(1, 64, ALIGNMENT + 8, torch.bfloat16) is None
    assert choose(1, 64, 64, torch.float32) is None


@pytest.mark.parametrize("num_rows", [0, 1, 3, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize("num_in", [48, 56])
def test_the_device_operations_with_either_product(num_rows: int, num_in: int) -> None:
    x, weight, bias = make_inputs(num_rows, 20, num_in, torch.float16)
    packed = cuda.pack_weight(weight)
    eps = torch.finfo(torch.float16).eps
    made = {activation: cuda.linear_act_and_mul(x, packed, bias, activation) for activation in ("silu", "gelu_tanh")}
    for activation, result in {None: cuda.linear(x, packed, bias), **made}.items():
        torch.testing.assert_close(result.double(), expected(x, weight, bias, activation), rtol=4 * eps, atol=4 * eps)
