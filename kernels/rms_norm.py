"""RMSNorm (Zhang and Sennrich 2019), alone, with the residual addition before it, and of selected rows only.

    normed[t, i] = x[t, i] / sqrt(mean_j(x[t, j]²) + eps) · weight[i]

With a residual, x is the sum residual + x, rounded to the storage type first: the sum is what later layers read, so the
norm of exactly that number is what a model computes without fusion. Everything else is float32, rounded once.

Traffic per row of n elements of s bytes: 2·n·s for `rms_norm`; 4·n·s for `add_rms_norm` (x and residual in, normed and
sum out), where separate kernels move 5·n·s; 3·n·s for `gather_add_rms_norm`. A row is read once and stays in registers
between the sum of squares and the product. `weight` (n·s) comes from the caches. About 5 flops an element: bound by
memory at every size that fills the chip, and by the latency of load, reduction and store at a few rows.
Measured: see docs/log.md.

Legend: T = rows of x, N = rows of the result, n = their length.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels
from kernels.row_tiles import whole_rows

MAX_SIZE = 16384
"""A row lies in the registers of one program; longer ones would spill."""


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,  # [T, SIZE], row stride x_stride
    residual_ptr,  # [T, SIZE] contiguous, or None: nothing is added
    indices_ptr,  # int32 [num_rows], which row each result is made of, or None: each its own
    weight_ptr,  # [SIZE]
    out_ptr,  # [num_rows, SIZE] contiguous
    num_rows,
    x_stride,
    eps,
    WRITE_SUM: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    cols = tl.arange(0, BLOCK)[None, :]
    in_row = cols < SIZE
    weight = tl.load(weight_ptr + cols, mask=in_row, other=0.0).to(tl.float32)
    wait_for_earlier_kernels()

    row_ids = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = row_ids.to(tl.int64)[:, None]
    mask = (rows < num_rows) & in_row
    if indices_ptr is not None:
        # The last token of a padded row is -1 where nothing at all is scheduled.
        indices = tl.load(indices_ptr + row_ids, mask=row_ids < num_rows, other=0)
        sources = tl.maximum(indices, 0).to(tl.int64)[:, None]
    else:
        sources = rows

    x = tl.load(x_ptr + sources * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + sources * SIZE + cols
        total = (x + tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)).to(residual_ptr.dtype.element_ty)
        if WRITE_SUM:
            tl.store(residual_ptrs, total, mask=mask)
        x = total.to(tl.float32)

    mean_square = tl.sum(x * x, axis=1, keep_dims=True) / SIZE  # [ROWS, 1]
    normed = x * tl.rsqrt(mean_square + eps) * weight
    tl.store(out_ptr + rows * SIZE + cols, normed.to(out_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """The norm of each row of `x` [T, n], whose rows may lie apart, with `weight` [n] of the same type or float32; into
    `out` [T, n] where given."""
    return _launch(x, None, None, weight, eps, out, write_sum=False)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of residual + x, residual + x) for `x` and `residual` [T, n]; the sum takes the residual's place."""
    return _launch(x, residual, None, weight, eps, out, write_sum=True), residual


def gather_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    indices: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The norm of residual + x, only of the rows that `indices` (int32 [N], a negative one counts as 0) name: [N, n].
    `x` and `residual` [T, n] stay as they are."""
    return _launch(x, residual, indices, weight, eps, out, write_sum=False)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor | None,
    write_sum: bool,
) -> torch.Tensor:
    num_tokens, size = x.shape
    num_rows = num_tokens if indices is None else len(indices)
    assert size <= MAX_SIZE, size
    check_rows(x, (num_tokens, size), x.dtype)
    check_dense(weight, (size,), weight.dtype)
    assert weight.dtype in (x.dtype, torch.float32), weight.dtype
    if residual is not None:
        check_dense(residual, (num_tokens, size), x.dtype)
    if indices is not None:
        check_dense(indices, (num_rows,), torch.int32)
    if out is None:
        out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    check_dense(out, (num_rows, size), x.dtype)
    rows, block, num_warps = whole_rows(size)
    _rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x,
        residual,
        indices,
        weight,
        out,
        num_rows,
        x.stride(0),
        eps,
        WRITE_SUM=write_sum,
        SIZE=size,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
        launch_pdl=may_overlap(),
    )
    return out
