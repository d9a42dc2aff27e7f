"""The rows of the embedding matrix that token ids name.

    out[t, :] = weight[min(max(input_ids[t], 0), V - 1), :]

A copy, bit for bit. The clamp keeps an id that no vocabulary has from reading another tensor's memory; refusing such
ids is the business of whoever accepts requests. Traffic: 2·n·s bytes a token (s bytes an element): bound by memory, at
a few tokens by two dependent loads. Measured: see docs/log.md.

Legend: T = tokens, V = vocabulary, n = length of a row.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels
from kernels.row_tiles import split_rows


@triton.jit(do_not_specialize=["num_tokens"])
def _embed_kernel(
    weight_ptr,  # [VOCAB_SIZE, SIZE], row stride weight_stride
    input_ids_ptr,  # int32 [num_tokens]
    out_ptr,  # [num_tokens, SIZE] contiguous
    num_tokens,
    weight_stride,
    VOCAB_SIZE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKS_PER_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    pid = tl.program_id(0)
    tokens = (pid // BLOCKS_PER_ROW) * ROWS + tl.arange(0, ROWS)
    ids = tl.load(input_ids_ptr + tokens, mask=tokens < num_tokens, other=0)
    ids = tl.minimum(tl.maximum(ids, 0), VOCAB_SIZE - 1).to(tl.int64)[:, None]
    rows = tokens[:, None]
    cols = (pid % BLOCKS_PER_ROW) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_tokens) & (cols < SIZE)
    vectors = tl.load(weight_ptr + ids * weight_stride + cols, mask=mask, other=0.0)
    tl.store(out_ptr + rows.to(tl.int64) * SIZE + cols, vectors, mask=mask)


def embed(weight: torch.Tensor, input_ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of `weight` [V, n] for `input_ids` (int32 [T]): [T, n], in `out` where given. Ids outside [0, V) count as
    the nearest one inside."""
    vocab_size, size = weight.shape
    num_tokens = len(input_ids)
    check_rows(weight, (vocab_size, size), weight.dtype)
    check_dense(input_ids, (num_tokens,), torch.int32)
    if out is None:
        out = torch.empty(num_tokens, size, dtype=weight.dtype, device=weight.device)
    check_dense(out, (num_tokens, size), weight.dtype)
    rows, block, blocks_per_row, num_warps = split_rows(size)
    _embed_kernel[(triton.cdiv(num_tokens, rows) * blocks_per_row,)](
        weight,
        input_ids,
        out,
        num_tokens,
        weight.stride(0),
        VOCAB_SIZE=vocab_size,
        SIZE=size,
        BLOCKS_PER_ROW=blocks_per_row,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
        launch_pdl=may_overlap(),
    )
    return out
