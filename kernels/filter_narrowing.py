"""Where the nucleus of a flat row ends: an interval of few tokens that holds its least logit, in up to three rounds.

A flat distribution has more tokens in its nucleus than there is room for candidates. The least logit of the nucleus
lies somewhere in [low, high), at first between two edges of the histogram's bins. A round sums the mass w = exp(s) at
or above 16 evenly spaced pivots, over all blocks of the row; the part between two pivots in which the sum reaches the
wanted share is the next interval. The part's own mass tells how many tokens it has at most. Once they are few enough
they are gathered as candidates (`filter_candidates.py`), and the mass at or above the interval's upper end counts for
them (`filter_thresholds.py`). One round is enough for most rows, three for logits with a deviation of 0.001. A row with
thousands of equal logits at the threshold has too many even so, and is searched as a whole.

Pivots are logits, not s: comparisons are exact then, though s is rounded differently here than where tokens are kept.

Traffic: 4·V bytes and some 65 instructions a token in each round, in rows with too many candidates; a program of any
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
    nucleus_bounds,
    nucleus_mass,
)
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float, make_finite

NUM_PIVOTS = tl.constexpr(16)
NUM_ROUNDS = tl.constexpr(3)


@triton.jit
def _chosen_interval(pivots_ptr, sums_ptr, wanted):
    """(low, high, mass at or above high, mass between) of a round's part in which the sum reaches `wanted` (int64): the
    least logit l of the nucleus has low <= l < high. Both are +inf where rounding left no such part, or where the round
    did not run."""
    j = tl.arange(0, NUM_PIVOTS)
    pivots, sums = tl.load(pivots_ptr + j), tl.load(sums_ptr + j)
    part = tl.sum((sums < wanted).to(tl.int32), axis=0)  # sums grow with j
    is_found = (part > 0) & (part < NUM_PIVOTS)
    low = tl.sum(tl.where(j == part, pivots, 0.0), axis=0)
    high = tl.sum(tl.where(j == part - 1, pivots, 0.0), axis=0)
    above = tl.sum(tl.where(j == part - 1, sums, 0), axis=0)
    between = tl.sum(tl.where(j == part, sums, 0), axis=0) - above
    return tl.where(is_found, low, float("inf")), tl.where(is_found, high, float("inf")), above, between


@triton.jit
def final_interval(pivots_ptr, sums_ptr, mass_ptr, i, top_p):
    """(low, high, mass at or above high) of the interval that the rounds left of the step's row `i`."""
    first = i * (NUM_ROUNDS * NUM_PIVOTS)
    num_rounds = 0
    for index in tl.static_range(NUM_ROUNDS):
        num_rounds += (tl.load(sums_ptr + first + index * NUM_PIVOTS + NUM_PIVOTS - 1) > 0).to(tl.int32)
    last = first + tl.maximum(num_rounds - 1, 0) * NUM_PIVOTS
    low, high, above, _between = _chosen_interval(pivots_ptr + last, sums_ptr + last, nucleus_mass(mass_ptr + i, top_p))
    return low, high, above


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
    row_max = load_row_maximum(maxima_ptr + i * num_blocks, num_blocks, LANES)
    per_unit = 1.0 / temperature
    before = (i * NUM_ROUNDS + ROUND - 1) * NUM_PIVOTS
    if ROUND == 0:
        low, high = nucleus_bounds(histogram_ptr + i * (NUM_BINS + 1), last, top_p, row_max, temperature)
    else:
        wanted = nucleus_mass(mass_ptr + i, top_p)
        low, high, _above, between = _chosen_interval(pivots_ptr + before, sums_ptr + before, wanted)
        most_tokens = between.to(tl.float32) / (UNIT * tl.exp(tl.minimum((low - row_max) * per_unit, 0.0)))
        if (low == float("inf")) | (most_tokens < 0.99 * MAX_CANDIDATES):
            return
    j = tl.arange(0, NUM_PIVOTS)
    pivots = high - (high - low) * (j.to(tl.float32) / (NUM_PIVOTS - 1))
    pivots = tl.where(j == NUM_PIVOTS - 1, low, pivots)
    if program == 0:
        tl.store(pivots_ptr + before + NUM_PIVOTS + j, pivots)
    least = least_scaled(record_ptr, MIN_P)
    sums = tl.zeros((NUM_PIVOTS,), tl.int64)
    first = program * blocks_per_program
    for block in range(first, tl.minimum(first + blocks_per_program, num_blocks)):
        token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
        is_new = token_ids >= block * BLOCK  # the last block overlaps the one before
        logits = make_finite(tl.load(logits_ptr + i.to(tl.int64) * logits_stride + token_ids))
        scaled = tl.minimum((logits - row_max) * per_unit, 0.0)
        mass = tl.where((scaled >= least) & is_new, tl.exp(scaled), 0.0)
        # Tokens along the second axis: a thread then has all pivots of its tokens, and scales each token once.
        block_sums = tl.sum(tl.where(logits[None, :] >= pivots[:, None], mass[None, :], 0.0), axis=1)
        sums += (block_sums * UNIT).to(tl.int64)
    tl.atomic_add(sums_ptr + before + NUM_PIVOTS + j, sums, mask=sums > 0)
