"""The smallest scaled logit that each row keeps under min-p, top-k and top-p, without a sort.

With s = (logit - row maximum) / temperature and w = exp(s), the filters are thresholds on s, in this order, each on
what the one before left; tokens of equal s are kept or dropped together:

    min-p   s >= log(min_p)
    top-k   s >= the k-th largest s                                         (0 or at least V: all)
    top-p   s >= the largest t with sum of w over {s >= t} >= top_p · sum of w over what is left
                                                                            (Holtzman et al. 2020)

Three launches:

    1. histogram  over splits of the vocabulary: a histogram of s in bins below the maximum, and the sum of w
    2. gather     over splits: copies the tokens that can decide, those of the first bins, which hold the k-th
                  largest or all of the nucleus, known from the histogram with a margin for the width of a bin
    3. search     one program a row: finds the exact threshold among them, four bits of its float32 pattern at a time,
                  counting or summing against 16 pivots at once

A row whose candidates do not fit (a flat distribution with a nucleus of thousands) is searched as a whole instead:
slow, but right. Sums are integers in units of 2^-40, so they depend on no order and the result is reproducible.

Traffic: 8·V bytes a row in 1 and 2, bound by memory; 3 works in the caches, bound by the latency of up to 16 passes
over a few hundred candidates. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.row_maxima import Partials, Splits, load_row_maximum
from kernels.sampling_fields import SampledRows, load_float, load_scaled

_NUM_BINS = tl.constexpr(128)
_BINS_PER_UNIT = tl.constexpr(4.0)
"""Bins are 1/4 wide: in logits where top-k decides, because there temperature does not matter; else in s."""
_MAX_CANDIDATES = tl.constexpr(4096)
_TAIL_SHARE = tl.constexpr(0.7)
"""Top-p's candidates end where the bins' middles put this share of 1 - top_p below. Sums by the middles are wrong by at
most exp(1/8), so at most 0.7 · exp(1/4) = 0.9 of 1 - top_p really lies there."""
_UNIT = tl.constexpr(2.0**40)
_TILE = tl.constexpr(512)


@dataclass(frozen=True, slots=True)
class FilterWorkspace:
    thresholds: torch.Tensor  # float32 [S], the result
    histogram: torch.Tensor  # int32 [S, bins + 1]: tokens by bin; last, how many candidates were gathered
    mass: torch.Tensor  # int64 [S]: sum of w over s >= log(min_p)
    candidates: torch.Tensor  # float32 [S, most candidates]: their s, in no particular order

    @classmethod
    def make(cls, max_num_seqs: int, device: torch.device | str) -> "FilterWorkspace":
        return cls(
            torch.empty(max_num_seqs, dtype=torch.float32, device=device),
            torch.empty(max_num_seqs, _NUM_BINS.value + 1, dtype=torch.int32, device=device),
            torch.empty(max_num_seqs, dtype=torch.int64, device=device),
            torch.empty(max_num_seqs, _MAX_CANDIDATES.value, dtype=torch.float32, device=device),
        )


@triton.jit
def _load_filters(record_ptr, vocab_size, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr):
    """(temperature, top_k, whether top-k drops anything, whether top-p does) of a row; nothing of a greedy row does."""
    temperature = load_float(record_ptr, TEMPERATURE)
    top_k = tl.load(record_ptr + TOP_K)
    drawn = (top_k != 1) & (temperature > 0)
    limited = drawn & (top_k > 0) & (top_k < vocab_size)
    return temperature, top_k, limited, drawn & (load_float(record_ptr, TOP_P) < 1)


@triton.jit
def _bins(scaled, limited, temperature):
    """Bins of scaled logits, 0 next to the maximum; the last one has all that lies deeper. Growing with -scaled, also
    after rounding."""
    per_unit = tl.where(limited, temperature * _BINS_PER_UNIT, _BINS_PER_UNIT)
    return tl.minimum(-scaled * per_unit, _NUM_BINS - 1.0).to(tl.int32)


@triton.jit
def _last_candidate_bin(histogram_ptr, limited, top_k, top_p):
    """(the last bin whose tokens can decide, how many tokens lie in it and above)."""
    bins = tl.arange(0, _NUM_BINS)
    counts = tl.load(histogram_ptr + bins)
    sums = tl.cumsum(counts, axis=0)
    mass = counts.to(tl.float32) * tl.exp(-(bins.to(tl.float32) + 0.5) / _BINS_PER_UNIT)
    tail = tl.sum(mass, axis=0) - tl.cumsum(mass, axis=0)
    short = tl.where(limited, sums < top_k, tail > (1 - top_p) * _TAIL_SHARE * tl.sum(mass, axis=0))
    last = tl.minimum(tl.sum(short.to(tl.int32), axis=0), _NUM_BINS - 1)
    return last, tl.sum(tl.where(bins <= last, counts, 0), axis=0)


@triton.jit
def _share(mass, top_p):
    """top_p · mass, in units; not 0, so that a minute top_p still keeps the most likely token."""
    return tl.maximum((mass.to(tl.float32) * top_p).to(tl.int64), 1)


@triton.jit
def _least_scaled(record_ptr, MIN_P: tl.constexpr):
    """log(min_p), min-p's threshold; -inf, which keeps all, where it is 0."""
    min_p = load_float(record_ptr, MIN_P)
    return tl.where(min_p > 0, tl.log(tl.where(min_p > 0, min_p, 1.0)), float("-inf"))


@triton.jit
def _masses(scaled, threshold):
    """exp(scaled) in integer units, 0 below the threshold."""
    return tl.where(scaled >= threshold, (tl.exp(scaled) * _UNIT).to(tl.int64), 0)


@triton.jit
def _histogram_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, most splits], row stride maxima_stride
    histogram_ptr,  # int32 [S, _NUM_BINS + 1]
    mass_ptr,  # int64 [S]
    logits_stride,
    fields_stride,
    maxima_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, _, limited, nucleus = _load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    if not (limited | nucleus):
        return
    row_max = load_row_maximum(maxima_ptr + i * maxima_stride, num_splits, SPLITS_BLOCK)
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    mask = token_ids < vocab_size
    scaled = load_scaled(logits_ptr, i.to(tl.int64) * logits_stride + token_ids, mask, row_max, temperature)
    counts = tl.histogram(_bins(scaled, limited, temperature), _NUM_BINS, mask=mask)
    tl.atomic_add(histogram_ptr + i * (_NUM_BINS + 1) + tl.arange(0, _NUM_BINS), counts, mask=counts > 0)
    kept = tl.where(scaled >= _least_scaled(record_ptr, MIN_P), tl.exp(scaled), 0.0)
    tl.atomic_add(mass_ptr + i, (tl.sum(kept, axis=0) * _UNIT).to(tl.int64))


@triton.jit
def _gather_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, most splits], row stride maxima_stride
    histogram_ptr,  # int32 [S, _NUM_BINS + 1]
    candidates_ptr,  # [S, _MAX_CANDIDATES]
    logits_stride,
    fields_stride,
    maxima_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, top_k, limited, nucleus = _load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    if not (limited | nucleus):
        return
    row_histogram_ptr = histogram_ptr + i * (_NUM_BINS + 1)
    last, num_candidates = _last_candidate_bin(row_histogram_ptr, limited, top_k, load_float(record_ptr, TOP_P))
    if num_candidates > _MAX_CANDIDATES:
        return
    row_max = load_row_maximum(maxima_ptr + i * maxima_stride, num_splits, SPLITS_BLOCK)
    token_ids = split * BLOCK + tl.arange(0, BLOCK)
    mask = token_ids < vocab_size
    scaled = load_scaled(logits_ptr, i.to(tl.int64) * logits_stride + token_ids, mask, row_max, temperature)
    kept = mask & (_bins(scaled, limited, temperature) <= last)
    num_kept = tl.sum(kept.to(tl.int32), axis=0)
    if num_kept > 0:
        first = tl.atomic_add(row_histogram_ptr + _NUM_BINS, num_kept)
        places = first + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(candidates_ptr + i * _MAX_CANDIDATES + places, scaled, mask=kept)


@triton.jit
def _sum_from(source_ptr, length, row_max, temperature, threshold):
    """The sum of w over the `length` logits at `source_ptr` whose s is at least `threshold`, in units."""
    total = tl.zeros((_TILE,), tl.int64)
    for start in range(0, length, _TILE):
        offsets = start + tl.arange(0, _TILE)
        scaled = load_scaled(source_ptr, offsets, offsets < length, row_max, temperature)
        total += _masses(scaled, threshold)
    return tl.sum(total, axis=0)


@triton.jit
def _search(source_ptr, length, row_max, temperature, threshold, wanted, COUNT: tl.constexpr):
    """The largest number t such that the tokens with s >= t number (COUNT) or weigh at least `wanted` (int64); -inf
    where even all are too few. What lies below `threshold` has no weight.

    float32 numbers are ordered like their bit patterns, once those of negative numbers are turned over: so the pattern
    of t is found from its highest bits to its lowest ones, as radix sort would.
    """
    digits = tl.arange(0, 16)
    pattern = tl.zeros((), tl.uint32)
    for step in range(8):
        shift = 28 - 4 * step
        pivots = pattern + (digits << shift).to(tl.uint32)
        sums = tl.zeros((16,), tl.int64)
        for start in range(0, length, _TILE):
            offsets = start + tl.arange(0, _TILE)
            mask = offsets < length
            scaled = load_scaled(source_ptr, offsets, mask, row_max, temperature)
            bits = scaled.to(tl.uint32, bitcast=True)
            keys = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
            if COUNT:
                weights = mask.to(tl.int64)
            else:
                weights = _masses(scaled, threshold)
            sums += tl.sum(tl.where(keys[:, None] >= pivots[None, :], weights[:, None], 0), axis=0)
        # Sums fall with the digit. Digit 0 was found to suffice already, as part of the pattern.
        enough = tl.sum(((digits > 0) & (sums >= wanted)).to(tl.int32), axis=0)
        pattern += (enough << shift).to(tl.uint32)
    found = tl.where((pattern >> 31) != 0, pattern & 0x7FFFFFFF, pattern ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)
    # The pattern 0, all are too few, is that of a NaN.
    return tl.where(found == found, found, float("-inf"))


@triton.jit
def _search_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, most splits], row stride maxima_stride
    histogram_ptr,  # int32 [S, _NUM_BINS + 1]
    mass_ptr,  # int64 [S]
    candidates_ptr,  # [S, _MAX_CANDIDATES]
    thresholds_ptr,  # [S]
    logits_stride,
    fields_stride,
    maxima_stride,
    vocab_size,
    num_splits,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, top_k, limited, nucleus = _load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    top_p = load_float(record_ptr, TOP_P)
    threshold = _least_scaled(record_ptr, MIN_P)
    if limited | nucleus:
        row_max = load_row_maximum(maxima_ptr + i * maxima_stride, num_splits, SPLITS_BLOCK)
        _, length = _last_candidate_bin(histogram_ptr + i * (_NUM_BINS + 1), limited, top_k, top_p)
        source_ptr = candidates_ptr + i * _MAX_CANDIDATES
        wanted = _share(tl.load(mass_ptr + i), top_p)
        whole_row = length > _MAX_CANDIDATES
        if (not limited) & (not whole_row):
            whole_row = _sum_from(source_ptr, length, 0.0, 1.0, threshold) < wanted
        # Candidates are scaled already.
        row_max = tl.where(whole_row, row_max, 0.0)
        temperature = tl.where(whole_row, temperature, 1.0)
        length = tl.where(whole_row, vocab_size, length)
        if whole_row:
            source_ptr = logits_ptr + i.to(tl.int64) * logits_stride
        if limited:
            kth = _search(source_ptr, length, row_max, temperature, threshold, top_k.to(tl.int64), COUNT=True)
            threshold = tl.maximum(threshold, kth)
            left = _sum_from(source_ptr, length, row_max, temperature, threshold)
            wanted = _share(left, top_p)
        if nucleus:
            pivot = _search(source_ptr, length, row_max, temperature, threshold, wanted, COUNT=False)
            threshold = tl.maximum(threshold, pivot)
    tl.store(thresholds_ptr + i, threshold)


def filter_thresholds(
    logits: torch.Tensor, step: SampledRows, maxima: Partials, workspace: FilterWorkspace
) -> torch.Tensor:
    """The thresholds [N] on scaled logits of the rows of `step` that sample, from `logits` [N, V] and their `maxima` as
    `find_row_maxima` left them; they lie in `workspace`. -inf for rows without a filter. A greedy row's means nothing.
    """
    step.check_logits(logits)
    num_rows, vocab_size = logits.shape
    assert len(workspace.thresholds) >= num_rows, (workspace.thresholds.shape, num_rows)
    columns, splits = step.columns, Splits.of(num_rows, vocab_size)
    assert vocab_size < 2**22, vocab_size  # more could overflow the integer sums
    workspace.histogram[:num_rows].zero_()
    workspace.mass[:num_rows].zero_()
    inputs = logits, step.rows, step.samples, step.fields, maxima.values
    sizes = logits.stride(0), step.fields.stride(0), maxima.stride, vocab_size, splits.count
    constants = {
        "TEMPERATURE": columns.temperature,
        "TOP_K": columns.top_k,
        "TOP_P": columns.top_p,
        "SPLITS_BLOCK": splits.count_block,
    }
    grid = splits.count, num_rows
    _histogram_kernel[grid](
        *inputs,
        workspace.histogram,
        workspace.mass,
        *sizes,
        **constants,
        MIN_P=columns.min_p,
        BLOCK=splits.block,
        num_warps=splits.num_warps,
    )
    _gather_kernel[grid](
        *inputs,
        workspace.histogram,
        workspace.candidates,
        *sizes,
        **constants,
        BLOCK=splits.block,
        num_warps=splits.num_warps,
    )
    _search_kernel[(num_rows,)](
        *inputs,
        workspace.histogram,
        workspace.mass,
        workspace.candidates,
        workspace.thresholds,
        *sizes,
        **constants,
        MIN_P=columns.min_p,
        num_warps=8,
    )
    return workspace.thresholds[:num_rows]
