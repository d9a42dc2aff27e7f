"""What a grammar allows, as bit masks over the vocabulary.

    apply_token_masks   logits[i, t] = the lowest number   where bit t % 32 of masks[k, t // 32] is 0, i = mask_rows[k]

Comes after everything else that changes logits, so that nothing brings back a token that was ruled out. Rows without a
mask are not looked at: there is a row of programs for each mask only.

Traffic: V / 8 bytes of mask a row, and 4 bytes for each token that is ruled out (stores alone, no logit is read): bound
by memory. Measured: see docs/log.md.

Legend: N = scheduled rows, V = vocabulary, M = masks, W = words of a mask, at least V / 32.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.sampling_fields import LOWEST

_BLOCK = 4096


@triton.jit
def _token_masks_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    mask_rows_ptr,  # int32 [M]
    masks_ptr,  # int32 [M, W], row stride masks_stride
    logits_stride,
    masks_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(1)
    i = tl.load(mask_rows_ptr + k).to(tl.int64)
    token_ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_vocab = token_ids < vocab_size
    words = tl.load(masks_ptr + k.to(tl.int64) * masks_stride + token_ids // 32, mask=in_vocab, other=0)
    is_ruled_out = ((words >> (token_ids % 32)) & 1) == 0
    lowest = tl.full((BLOCK,), LOWEST, tl.float32)
    tl.store(logits_ptr + i * logits_stride + token_ids, lowest, mask=in_vocab & is_ruled_out)


def apply_token_masks(logits: torch.Tensor, mask_rows: torch.Tensor, masks: torch.Tensor) -> None:
    """Rules out in the logits [N, V] of rows `mask_rows` (int32 [M], each at most once) the tokens that `masks`
    (int32 [M, W]) do not allow."""
    num_masks, vocab_size = len(mask_rows), logits.shape[1]
    check_rows(logits, (len(logits), vocab_size), torch.float32)
    check_dense(mask_rows, (num_masks,), torch.int32)
    check_rows(masks, (num_masks, masks.shape[1]), torch.int32)
    assert 32 * masks.shape[1] >= vocab_size, (masks.shape, vocab_size)
    _token_masks_kernel[(triton.cdiv(vocab_size, _BLOCK), num_masks)](
        logits,
        mask_rows,
        masks,
        logits.stride(0),
        masks.stride(0),
        vocab_size,
        BLOCK=_BLOCK,
        num_warps=8,
    )
