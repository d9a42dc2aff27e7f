"""The gated activations of an MLP (Shazeer 2020), on the output of the merged gate and up projection.

    out[t, i] = act(gate_up[t, i]) · gate_up[t, n + i]

    silu(x)      = x / (1 + exp(-x))
    gelu(x)      = x / 2 · (1 + erf(x / sqrt 2))                                 (Hendrycks and Gimpel 2016)
    gelu_tanh(x) = x / 2 · (1 + tanh(u)) = x / (1 + exp(-2·u)),  u = sqrt(2 / pi) · (x + 0.044715·x³)

Computed in float32 and rounded once. Traffic per row: 3·n·s bytes (s bytes an element), each touched once; some ten
flops and one exponential an element: bound by memory. Measured: see docs/log.md.

Legend: T = rows, n = length of a result's row.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels
from kernels.row_tiles import split_rows


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """`x` float32, by the activation's name."""
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        # By the logistic function, which has no cancellation at negative x, where 1 + tanh would.
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _activation_kernel(
    gate_up_ptr,  # [num_rows, 2 * SIZE], row stride gate_up_stride
    out_ptr,  # [num_rows, SIZE] contiguous
    num_rows,
    gate_up_stride,
    ACTIVATION: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKS_PER_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    pid = tl.program_id(0)
    rows = (pid // BLOCKS_PER_ROW) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = (pid % BLOCKS_PER_ROW) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows) & (cols < SIZE)
    gate_ptrs = gate_up_ptr + rows.to(tl.int64) * gate_up_stride + cols
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + SIZE, mask=mask, other=0.0).to(tl.float32)
    gated = activate(gate, ACTIVATION) * up
    tl.store(out_ptr + rows.to(tl.int64) * SIZE + cols, gated.to(out_ptr.dtype.element_ty), mask=mask)


def act_and_mul(gate_up: torch.Tensor, activation: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """act(gate) · up for `gate_up` [T, 2n], gate first, whose rows may lie apart; [T, n], in `out` where given.
    `activation` is "silu", "gelu" or "gelu_tanh"."""
    num_rows, size = len(gate_up), gate_up.shape[1] // 2
    check_rows(gate_up, (num_rows, 2 * size), gate_up.dtype)
    if out is None:
        out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
    check_dense(out, (num_rows, size), gate_up.dtype)
    rows, block, blocks_per_row, num_warps = split_rows(size)
    _activation_kernel[(triton.cdiv(num_rows, rows) * blocks_per_row,)](
        gate_up,
        out,
        num_rows,
        gate_up.stride(0),
        ACTIVATION=activation,
        SIZE=size,
        BLOCKS_PER_ROW=blocks_per_row,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
        launch_pdl=may_overlap(),
    )
    return out
