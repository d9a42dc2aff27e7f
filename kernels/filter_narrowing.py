"""Where the nucleus of a flat row ends: an interval of s that holds the threshold and few tokens, in three rounds.

A flat distribution has more tokens in its nucleus than there is room for candidates. Its threshold lies somewhere in
[low, high). A round sums the mass w = exp(s) at or above 16 pivots over all blocks of the row; the part between two
pivots in which the sum reaches the wanted share is the next interval. The first round's pivots are powers of two apart,
so that the scale of s does not matter, the others' are evenly spaced. What is left is 1/225 of an octave of s: some
hundred tokens of 150,000. They are gathered as candidates (`filter_candidates.py`), and the mass at or above the
interval's upper end counts for them (`filter_thresholds.py`). A row with thousands of equal logits at the threshold has
too many even so, and is searched as a whole.

Sums of 256 tokens are float32, in a fixed order; sums of these are integers in units of 2^-40. So a sum does not depend
on how many programs share a row.

Traffic: 4·V bytes and some 60 instructions a token in each round, in rows with too many candidates; a program of any
other row ends at once. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row.
"""

import triton
import triton.language as tl

from kernels.block_bounds import block_start, load_row_maximum
from kernels.filter_bins import (
    MAX_CANDIDATES,
    NUM_BINS,
    UNIT,
    last_candidate_bin,
    least_scaled,
    load_filters,
    lowest_of_bin,
    nucleus_mass,
)
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float, load_scaled

NUM_PIVOTS = tl.constexpr(16)
NUM_ROUNDS = tl.constexpr(3)
_TILE = tl.constexpr(256)
"""Tokens of a float32 sum."""


@triton.jit
def _chosen_interval(pivots_ptr, sums_ptr, wanted):
    """(low, high, mass at or above high) of the part of a finished round in which the sum reaches `wanted` (int64):
    the threshold t has low <= t < high. Both are +inf where rounding left no such part."""
    j = tl.arange(0, NUM_PIVOTS)
    pivots, sums = tl.load(pivots_ptr + j), tl.load(sums_ptr + j)
    part = tl.sum((sums < wanted).to(tl.int32), axis=0)  # sums grow with j
    is_found = (part > 0) & (part < NUM_PIVOTS)
    low = tl.sum(tl.where(j == part, pivots, 0.0), axis=0)
    high = tl.sum(tl.where(j == part - 1, pivots, 0.0), axis=0)
    above = tl.sum(tl.where(j == part - 1, sums, 0), axis=0)
    return tl.where(is_found, low, float("inf")), tl.where(is_found, high, float("inf")), above


@triton.jit
def final_interval(pivots_ptr, sums_ptr, mass_ptr, i, top_p):
    """The interval that the last round leaves of the step's row `i`, and the mass above it: (low, high, mass)."""
    last = (i * NUM_ROUNDS + NUM_ROUNDS - 1) * NUM_PIVOTS
    return _chosen_interval(pivots_ptr + last, sums_ptr + last, nucleus_mass(mass_ptr + i, top_p))


@triton.jit
def _pivots(low, high, ROUND: tl.constexpr):
    """NUM_PIVOTS numbers, falling from `high` to `low`; those of the first round from just above 0."""
    j = tl.arange(0, NUM_PIVOTS)
    if ROUND == 0:
        pivots = tl.where(j == 0, -low, low) * tl.exp2(tl.maximum(j, 1).to(tl.float32) - (NUM_PIVOTS - 1))
    else:
        pivots = high - (high - low) * (j.to(tl.float32) / (NUM_PIVOTS - 1))
    return tl.where(j == NUM_PIVOTS - 1, low, pivots)


@triton.jit(do_not_specialize=["num_blocks", "blocks_per_program"])
def narrowing_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, num_blocks]
    histogram_ptr,  # int32 [S, NUM_BINS + 1]
    mass_ptr,  # int64 [S]
    pivots_ptr,  # [S, NUM_ROUNDS, NUM_PIVOTS]
    sums_ptr,  # int64 [S, NUM_ROUNDS, NUM_PIVOTS], zero before the first round
    logits_stride,
    fields_stride,
    vocab_size,
    num_blocks,
    blocks_per_program,
    ROUND: tl.constexpr,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    program, i = tl.program_id(0), tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, top_k, limited, nucleus = load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    if limited | (not nucleus):
        return
    top_p = load_float(record_ptr, TOP_P)
    last, num_candidates = last_candidate_bin(histogram_ptr + i * (NUM_BINS + 1), limited, top_k, top_p)
    if num_candidates <= MAX_CANDIDATES:
        return
    before = (i * NUM_ROUNDS + ROUND - 1) * NUM_PIVOTS
    if ROUND == 0:
        low, high = lowest_of_bin(last), 0.0
    else:
        wanted = nucleus_mass(mass_ptr + i, top_p)
        low, high, _above = _chosen_interval(pivots_ptr + before, sums_ptr + before, wanted)
        if low == float("inf"):
            return
    j = tl.arange(0, NUM_PIVOTS)
    pivots = _pivots(low, high, ROUND)
    if program == 0:
        tl.store(pivots_ptr + before + NUM_PIVOTS + j, pivots)
    row_max = load_row_maximum(maxima_ptr + i * num_blocks, num_blocks, LANES)
    bounds = tl.maximum(pivots, least_scaled(record_ptr, MIN_P))
    sums = tl.zeros((NUM_PIVOTS,), tl.int64)
    PART: tl.constexpr = min(_TILE, BLOCK)
    first = program * blocks_per_program
    for block in range(first, tl.minimum(first + blocks_per_program, num_blocks)):
        for start in range(0, BLOCK, PART):
            token_ids = block_start(block, vocab_size, BLOCK) + start + tl.arange(0, PART)
            is_new = token_ids >= block * BLOCK  # the last block overlaps the one before
            scaled = load_scaled(logits_ptr, i.to(tl.int64) * logits_stride + token_ids, is_new, row_max, temperature)
            reached = scaled[:, None] >= bounds[None, :]
            part_sums = tl.sum(tl.where(reached, tl.exp(scaled)[:, None], 0.0), axis=0)
            sums += (part_sums * UNIT).to(tl.int64)
    tl.atomic_add(sums_ptr + before + NUM_PIVOTS + j, sums, mask=sums > 0)
