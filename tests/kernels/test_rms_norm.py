"""The norm kernels against the references in float64, at odd shapes, into poisoned memory."""

from tests.kernels.device import DEVICE  # isort: skip

import pytest
import torch

from kernels import reference
from kernels.rms_norm import add_rms_norm, gather_add_rms_norm, rms_norm

SHAPES = [(1, 1), (3, 17), (70, 33), (5, 1000), (2, 1536), (1, 4096), (2, 16384)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5


def rows_apart(num_rows: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows in a wider matrix, whose other columns are NaN; as well aligned as their length allows."""
    wide = torch.full((num_rows, size + 16), torch.nan, dtype=dtype, device=DEVICE)
    wide[:, 8:-8] = torch.randn(num_rows, size) * 3
    return wide[:, 8:-8]


def guarded(num_rows: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of NaN, and its rows that a kernel may write to: all but the first and the last."""
    memory = torch.full((num_rows + 2, size), torch.nan, dtype=dtype, device=DEVICE)
    return memory, memory[1:-1]


def assert_rounded_once(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """`wanted` is float64; the result may differ by one rounding to `dtype` (Triton's interpreter does not round to
    bf16 but cuts off, which is up to one `eps`) and float32's own error."""
    assert got.dtype == dtype
    rtol = max(torch.finfo(dtype).eps, 16 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(got.double().cpu(), wanted, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), SHAPES)
def test_rms_norm(num_rows: int, size: int, dtype: torch.dtype) -> None:
    x, weight = rows_apart(num_rows, size, dtype), torch.randn(size).to(DEVICE, dtype)
    memory, out = guarded(num_rows, size, dtype)
    assert rms_norm(x, weight, EPS, out=out) is out
    assert_rounded_once(out, reference.rms_norm(x.double().cpu(), weight.double().cpu(), EPS), dtype)
    assert memory[[0, -1]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), SHAPES)
def test_add_rms_norm_rounds_the_sum_first(num_rows: int, size: int, dtype: torch.dtype) -> None:
    x, weight = rows_apart(num_rows, size, dtype), torch.randn(size).to(DEVICE, dtype)
    memory, out = guarded(num_rows, size, dtype)
    residual_memory, residual = guarded(num_rows, size, dtype)
    residual.copy_(torch.randn(num_rows, size))
    wanted_sum = residual.double().cpu() + x.double().cpu()
    normed, total = add_rms_norm(x, residual, weight, EPS, out=out)
    assert normed is out
    assert total is residual
    assert_rounded_once(total, wanted_sum, dtype)
    assert_rounded_once(out, reference.rms_norm(total.double().cpu(), weight.double().cpu(), EPS), dtype)
    assert memory[[0, -1]].isnan().all()
    assert residual_memory[[0, -1]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "size"), SHAPES)
def test_gather_add_rms_norm_is_add_rms_norm_of_some_rows(num_rows: int, size: int, dtype: torch.dtype) -> None:
    x, weight = rows_apart(num_rows, size, dtype), torch.randn(size).to(DEVICE, dtype)
    residual = torch.randn(num_rows, size).to(DEVICE, dtype)
    before = x.clone(), residual.clone()
    wanted, _ = add_rms_norm(x, residual.clone(), weight, EPS)
    rows = torch.randint(num_rows, (num_rows // 2 + 2,))
    indices = rows.to(DEVICE, torch.int32)
    indices[-1], rows[-1] = -1, 0  # a padded row where nothing is scheduled
    memory, out = guarded(len(rows), size, dtype)
    assert gather_add_rms_norm(x, residual, indices, weight, EPS, out=out) is out
    assert torch.equal(out, wanted[rows.to(DEVICE)])
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert memory[[0, -1]].isnan().all()


def test_results_are_allocated_where_no_memory_is_given() -> None:
    """Shape and content; and eps decides about rows of zeros."""
    x, weight = torch.zeros(3, 5, device=DEVICE), torch.ones(5, device=DEVICE)
    indices = torch.tensor([2, 1], dtype=torch.int32, device=DEVICE)
    for got, num_rows in (
        (rms_norm(x, weight, EPS), 3),
        (add_rms_norm(x, x.clone(), weight, EPS)[0], 3),
        (gather_add_rms_norm(x, x, indices, weight, EPS), 2),
    ):
        assert torch.equal(got, torch.zeros(num_rows, 5, device=DEVICE))


def test_no_rows() -> None:
    x, weight = torch.empty(0, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert rms_norm(x, weight, EPS).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_float32(dtype: torch.dtype) -> None:
    """1 + weight keeps its precision; the plain version takes it as well."""
    x, weight = rows_apart(5, 48, dtype), 1.0 + torch.randn(48).to(DEVICE) * 1e-3
    wanted = reference.rms_norm(x.double().cpu(), weight.double().cpu(), EPS)
    assert_rounded_once(rms_norm(x, weight, EPS), wanted, dtype)
    assert_rounded_once(reference.rms_norm(x.cpu(), weight.cpu(), EPS), wanted, dtype)
