"""Top-nσ: what lies too many standard deviations below a row's largest logit is ruled out, in place.

    logits[i, v] = the lowest number   where logits[i, v] < M - n · σ       (Tang et al. 2024, arXiv 2411.07641)

M is the row's largest logit, σ the standard deviation of its logits (mean of squares, as llama.cpp has it; the paper's
code divides by one less). Temperature scales both sides and so changes nothing: it is left out. A logit of -LARGEST or
below counts for neither M nor σ: the model or an earlier processor has ruled its token out. NaN is one of these.

It runs behind all other processors and before min-p, top-k and top-p, for drawn rows with n > 0; other rows cost
programs that return at once. A first launch finds the moments of each split of the vocabulary, around the split's own
mean; a second adds up those of a row (Chan et al. 1979) and rules out.

Traffic: 8·V bytes a row, and 4 bytes for each token that is ruled out; the second reading mostly hits the cache.

Legend: N = scheduled rows, V = vocabulary, s = splits of the vocabulary.
"""

import torch
import triton
import triton.language as tl

from kernels.block_bounds import is_drawn
from kernels.sampling_fields import LARGEST, LOWEST, load_float, make_finite
from kernels.step_tensors import RowTensors, SampledRows

_BLOCK = 4096
_MOST = tl.constexpr(1e15)
"""Deviations count as no larger than this, so that no square overflows."""


@triton.jit
def _load_reach(record_ptr, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr, TOP_N_SIGMA: tl.constexpr):
    """n of a row; 0 where nothing is to be ruled out."""
    return tl.where(is_drawn(record_ptr, TEMPERATURE, TOP_K), load_float(record_ptr, TOP_N_SIGMA), 0.0)


@triton.jit
def _square(deviations):
    deviations = tl.minimum(tl.abs(deviations), _MOST)
    return deviations * deviations


@triton.jit
def _moments_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    moments_ptr,  # [N, 4, num_splits]: of logits that count, maximum, number, mean, sum of squares around the mean
    logits_stride,
    fields_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_N_SIGMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    if _load_reach(fields_ptr + tl.load(rows_ptr + i) * fields_stride, TEMPERATURE, TOP_K, TOP_N_SIGMA) == 0:
        return
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    logits = make_finite(tl.load(row_ptr + token_ids, mask=token_ids < vocab_size, other=float("-inf")))
    counts = logits > -LARGEST
    number = tl.sum(counts.to(tl.float32), axis=0)
    mean = tl.sum(tl.where(counts, logits, 0.0), axis=0) / tl.maximum(number, 1.0)
    squares = _square(tl.where(counts, logits - mean, 0.0))
    row_moments_ptr = moments_ptr + 4 * i * num_splits + split
    tl.store(row_moments_ptr, tl.max(logits, axis=0))
    tl.store(row_moments_ptr + num_splits, number)
    tl.store(row_moments_ptr + 2 * num_splits, mean)
    tl.store(row_moments_ptr + 3 * num_splits, tl.sum(squares, axis=0))


@triton.jit
def _rule_out_kernel(
    logits_ptr,  # as above, like the next eight
    rows_ptr,
    samples_ptr,
    fields_ptr,
    moments_ptr,
    logits_stride,
    fields_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_N_SIGMA: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    reach = _load_reach(fields_ptr + tl.load(rows_ptr + i) * fields_stride, TEMPERATURE, TOP_K, TOP_N_SIGMA)
    if reach == 0:
        return
    splits = tl.arange(0, SPLITS_BLOCK)
    is_split = splits < num_splits
    row_moments_ptr = moments_ptr + 4 * i * num_splits + splits
    maximum = tl.max(tl.load(row_moments_ptr, mask=is_split, other=float("-inf")), axis=0)
    numbers = tl.load(row_moments_ptr + num_splits, mask=is_split, other=0.0)
    means = tl.load(row_moments_ptr + 2 * num_splits, mask=is_split, other=0.0)
    squares = tl.load(row_moments_ptr + 3 * num_splits, mask=is_split, other=0.0)
    number = tl.maximum(tl.sum(numbers, axis=0), 1.0)
    shifts = tl.where(numbers > 0, means - tl.sum(means * (numbers / number), axis=0), 0.0)
    variance = tl.sum(squares + numbers * _square(shifts), axis=0) / number
    least = maximum - reach * tl.sqrt_rn(variance)
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    in_vocab = token_ids < vocab_size
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    logits = make_finite(tl.load(row_ptr + token_ids, mask=in_vocab, other=0.0))
    tl.store(row_ptr + token_ids, tl.full((BLOCK,), LOWEST, tl.float32), mask=in_vocab & (logits < least))


def keep_top_n_sigma(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Rules out in the logits [N, V] of drawn rows what lies more than `top_n_sigma` standard deviations below the
    row's largest one, where that is not 0. Needs none of `rows`."""
    step.check_logits(logits)
    num_rows, vocab_size = logits.shape
    num_splits = triton.cdiv(vocab_size, _BLOCK)
    moments = torch.empty(num_rows, 4, num_splits, dtype=torch.float32, device=logits.device)
    arguments = (
        logits,
        step.rows,
        step.samples,
        step.fields,
        moments,
        logits.stride(0),
        step.fields.stride(0),
        vocab_size,
        num_splits,
    )
    constants = {**step.constants("temperature", "top_k", "top_n_sigma"), "BLOCK": _BLOCK, "num_warps": 8}
    _moments_kernel[(num_splits, num_rows)](*arguments, **constants)
    splits_block = triton.next_power_of_2(num_splits)
    _rule_out_kernel[(num_splits, num_rows)](*arguments, SPLITS_BLOCK=splits_block, **constants)
