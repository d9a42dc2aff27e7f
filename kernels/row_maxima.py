"""The largest logit of each row and its token id, by splits of the vocabulary; the lowest id among equals.

    value[i, s] = max(logits[i, split s]),   id[i, s] = argmax(logits[i, split s])

A row is cut into splits so that even a single one occupies the chip; whoever needs a row's maximum reduces its splits,
which lie in the L2 cache. Non-finite logits count as `make_finite` says.

Traffic: 4·V bytes a row, read once: bound by memory at many rows, by one launch and one load at a few.
Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.sampling_fields import SampledRows, make_finite

_FEW_ROWS = 8
_FEW_ROWS_BLOCK, _MANY_ROWS_BLOCK = 1024, 4096


@dataclass(frozen=True, slots=True)
class Splits:
    """How the rows of one step are cut: two cases, so that kernels are compiled twice and not for every N."""

    block: int
    """Tokens of one split, a power of two."""
    count: int
    num_warps: int

    @classmethod
    def of(cls, num_rows: int, vocab_size: int) -> "Splits":
        """Small splits where few rows have to fill 132 multiprocessors; large ones cost less where they do anyway."""
        block = _FEW_ROWS_BLOCK if num_rows <= _FEW_ROWS else _MANY_ROWS_BLOCK
        return cls(block, triton.cdiv(vocab_size, block), 4 if num_rows <= _FEW_ROWS else 8)

    @property
    def count_block(self) -> int:
        """Lanes that hold one value of each split."""
        return int(triton.next_power_of_2(self.count))


@dataclass(frozen=True, slots=True)
class Partials:
    """A value and a token id for each row and split, with room for any `Splits` of the vocabulary."""

    values: torch.Tensor  # float32 [S, most splits]
    ids: torch.Tensor  # int32 [S, most splits]

    @classmethod
    def make(cls, max_num_seqs: int, vocab_size: int, device: torch.device | str) -> "Partials":
        shape = max_num_seqs, triton.cdiv(vocab_size, _FEW_ROWS_BLOCK)
        return cls(
            torch.empty(shape, dtype=torch.float32, device=device), torch.empty(shape, dtype=torch.int32, device=device)
        )

    @property
    def stride(self) -> int:
        return self.values.stride(0)


@triton.jit
def load_row_maximum(maxima_ptr, num_splits, SPLITS_BLOCK: tl.constexpr):
    """A row's largest logit from its splits' ones at `maxima_ptr`."""
    splits = tl.arange(0, SPLITS_BLOCK)
    return tl.max(tl.load(maxima_ptr + splits, mask=splits < num_splits, other=float("-inf")), axis=0)


@triton.jit
def choose_best(values, ids, SPLITS_BLOCK: tl.constexpr):
    """(largest of `values` [SPLITS_BLOCK], its token id). Splits follow each other in the order of token ids, so the
    leftmost of equal ones has the lowest id."""
    value, best = tl.max(values, axis=0, return_indices=True, return_indices_tie_break_left=True)
    return value, tl.sum(tl.where(tl.arange(0, SPLITS_BLOCK) == best, ids, 0), axis=0)


@triton.jit
def _row_maxima_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    samples_ptr,  # int32 [N]
    values_ptr,  # [S, most splits], row stride partials_stride
    ids_ptr,  # int32, like values_ptr
    logits_stride,
    partials_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    mask = token_ids < vocab_size
    logits = make_finite(tl.load(logits_ptr + i.to(tl.int64) * logits_stride + token_ids, mask=mask, other=0.0))
    logits = tl.where(mask, logits, float("-inf"))
    value, index = tl.max(logits, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(values_ptr + i * partials_stride + split, value)
    tl.store(ids_ptr + i * partials_stride + split, split * BLOCK + index)


def find_row_maxima(logits: torch.Tensor, step: SampledRows, out: Partials) -> None:
    """The maxima of `logits` [N, V] into the first N rows of `out`, for the rows that sample."""
    step.check_logits(logits)
    vocab_size = logits.shape[1]
    splits = Splits.of(len(step), vocab_size)
    assert len(out.values) >= len(step), (out.values.shape, len(step))
    assert out.values.shape[1] >= splits.count, (out.values.shape, splits)
    _row_maxima_kernel[(splits.count, len(step))](
        logits,
        step.samples,
        out.values,
        out.ids,
        logits.stride(0),
        out.stride,
        vocab_size,
        BLOCK=splits.block,
        num_warps=splits.num_warps,
    )
