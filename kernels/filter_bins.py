"""How deep below its maximum the tokens lie that can decide a row's filter thresholds: a histogram in one launch.

Bins of s are counted below the maximum, and the sum of w; `filter_thresholds.py` has the whole. From the counts, with a
margin for the width of a bin, follows the last bin that can hold the k-th largest or the end of the nucleus.

Blocks' maxima are known, so blocks are left out unread: where top-k decides, those below the bin of the (k + 1)-th
largest *maximum*, because no fewer than k tokens lie in it and above (the last block overlaps another, and may have the
same maximum); else those in the last bin, 32 below the maximum, whose sum of w is less than V · e^-32.

Traffic: 4·V bytes a row where top-p alone decides, and some 60 instructions a token, most of them the histogram's;
about k blocks where top-k decides. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row.
"""

import triton
import triton.language as tl

from kernels.block_bounds import block_start, is_drawn
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float

NUM_BINS = tl.constexpr(128)
_BINS_PER_UNIT = tl.constexpr(4.0)
"""Bins are 1/4 wide: in logits where top-k decides, because there temperature does not matter; else in s."""
MAX_CANDIDATES = tl.constexpr(4096)
_TAIL_SHARE = tl.constexpr(0.7)
"""Top-p's candidates end where the bins' middles put this share of 1 - top_p below. Sums by the middles are wrong by at
most exp(1/8), so at most 0.7 · exp(1/4) = 0.9 of 1 - top_p really lies there."""
_SURE_SHARE = tl.constexpr(0.77)
"""Less than exp(-1/4): a ratio of two sums by the middles is not wrong by more."""
UNIT = tl.constexpr(2.0**40)


@triton.jit
def load_filters(record_ptr, vocab_size, TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr):
    """(temperature, top_k, whether top-k drops anything, whether top-p does) of a row; nothing of a greedy row does."""
    temperature = load_float(record_ptr, TEMPERATURE)
    top_k = tl.load(record_ptr + TOP_K)
    drawn = is_drawn(record_ptr, TEMPERATURE, TOP_K)
    limited = drawn & (top_k > 0) & (top_k < vocab_size)
    return temperature, top_k, limited, drawn & (load_float(record_ptr, TOP_P) < 1)


@triton.jit
def bins_of(logits, row_max, limited, temperature):
    """Bins of logits, 0 next to the maximum; the last one has all that lies deeper, and NaN. Not falling with depth,
    also after rounding. What overflowed upwards lies in bin 0."""
    per_unit = tl.where(limited, _BINS_PER_UNIT, _BINS_PER_UNIT / temperature)
    depth = (row_max - logits) * per_unit
    return tl.where(depth < NUM_BINS - 1.0, tl.maximum(depth, 0.0), NUM_BINS - 1.0).to(tl.int32)


@triton.jit
def _last_bin_to_count(maxima_bins, is_block, limited, top_k):
    """The last bin whose tokens must be counted, from the bins [LANES] of the blocks' maxima: one in which and above
    which more than `top_k` maxima lie, where top-k decides."""
    sums = tl.cumsum(tl.histogram(maxima_bins, NUM_BINS, mask=is_block), axis=0)
    last = tl.sum((sums <= top_k).to(tl.int32), axis=0)
    # The last bin itself, where all that is too deep lies, is counted only where top-k needs it.
    return tl.where(limited, tl.minimum(last, NUM_BINS - 1), NUM_BINS - 2)


@triton.jit
def last_candidate_bin(histogram_ptr, limited, top_k, top_p):
    """(the last bin whose tokens can decide, how many tokens lie in it and above)."""
    bins = tl.arange(0, NUM_BINS)
    counts = tl.load(histogram_ptr + bins)
    sums = tl.cumsum(counts, axis=0)
    mass = counts.to(tl.float32) * tl.exp(-(bins.to(tl.float32) + 0.5) / _BINS_PER_UNIT)
    tail = tl.sum(mass, axis=0) - tl.cumsum(mass, axis=0)
    short = tl.where(limited, sums < top_k, tail > (1 - top_p) * _TAIL_SHARE * tl.sum(mass, axis=0))
    # Without top-k, what lies in the last bin was not counted as a whole.
    last = tl.minimum(tl.sum(short.to(tl.int32), axis=0), tl.where(limited, NUM_BINS - 1, NUM_BINS - 2))
    return last, tl.sum(tl.where(bins <= last, counts, 0), axis=0)


@triton.jit
def nucleus_bounds(histogram_ptr, last, top_p, row_max, temperature):
    """(low, high) of logits between which the least of the nucleus lies, in a row that top-k does not limit and whose
    candidates end with bin `last`. Of a bin before the first that can have it, the middles say for sure that more than
    1 - top_p lies below, or that less than top_p lies in it and above."""
    bins = tl.arange(0, NUM_BINS)
    counts = tl.load(histogram_ptr + bins)
    mass = counts.to(tl.float32) * tl.exp(-(bins.to(tl.float32) + 0.5) / _BINS_PER_UNIT)
    total, sums = tl.sum(mass, axis=0), tl.cumsum(mass, axis=0)
    is_before = (sums < top_p * _SURE_SHARE * total) | ((total - sums) * _SURE_SHARE > (1 - top_p) * total)
    first = tl.sum((is_before & (bins < last)).to(tl.int32), axis=0)
    unit = temperature / _BINS_PER_UNIT
    margin = 1e-6 * ((last + 1) * unit + tl.abs(row_max))
    return row_max - (last + 1) * unit - margin, row_max - first * unit + margin


@triton.jit
def share_of(mass, top_p):
    """top_p · mass, in units; not 0, so that a minute top_p still keeps the most likely token."""
    return tl.maximum((mass.to(tl.float32) * top_p).to(tl.int64), 1)


@triton.jit
def nucleus_mass(mass_ptr, top_p):
    """The mass, in units, that top-p's nucleus has to reach, of a row that top-k does not limit."""
    return share_of(tl.load(mass_ptr), top_p)


@triton.jit
def least_scaled(record_ptr, MIN_P: tl.constexpr):
    """log(min_p), min-p's threshold; -inf, which keeps all, where it is 0."""
    min_p = load_float(record_ptr, MIN_P)
    return tl.where(min_p > 0, tl.log(tl.where(min_p > 0, min_p, 1.0)), float("-inf"))


@triton.jit(do_not_specialize=["num_blocks", "blocks_per_program"])
def histogram_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, num_blocks]
    histogram_ptr,  # int32 [S, NUM_BINS + 1]
    mass_ptr,  # int64 [S]
    logits_stride,
    fields_stride,
    vocab_size,
    num_blocks,
    blocks_per_program,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    first, i = tl.program_id(0) * blocks_per_program, tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, top_k, limited, nucleus = load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    if not (limited | nucleus):
        return
    blocks = tl.arange(0, LANES)
    maxima = tl.load(maxima_ptr + i * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
    row_max = tl.max(maxima, axis=0)
    last = _last_bin_to_count(bins_of(maxima, row_max, limited, temperature), blocks < num_blocks, limited, top_k)
    least, per_unit = least_scaled(record_ptr, MIN_P), 1.0 / temperature
    counts = tl.zeros((NUM_BINS,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for block in range(first, tl.minimum(first + blocks_per_program, num_blocks)):
        block_max = tl.load(maxima_ptr + i * num_blocks + block)
        if bins_of(block_max, row_max, limited, temperature) <= last:
            token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
            is_new = token_ids >= block * BLOCK  # the last block overlaps the one before
            logits = tl.load(logits_ptr + i.to(tl.int64) * logits_stride + token_ids)
            counts += tl.histogram(bins_of(logits, row_max, limited, temperature), NUM_BINS, mask=is_new)
            scaled = tl.minimum((logits - row_max) * per_unit, 0.0)
            mass += tl.where((scaled >= least) & is_new, tl.exp(scaled), 0.0)
    tl.atomic_add(histogram_ptr + i * (NUM_BINS + 1) + tl.arange(0, NUM_BINS), counts, mask=counts > 0)
    tl.atomic_add(mass_ptr + i, (tl.sum(mass, axis=0) * UNIT).to(tl.int64))
