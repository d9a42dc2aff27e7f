"""The tokens that can decide a row's filter thresholds, gathered in one launch; `filter_thresholds.py` has the whole.

Over blocks of the vocabulary, the tokens down to the last bin of `filter_bins.py` are copied: they hold the k-th
largest, or all of the nucleus. Where a nucleus has too many of these, the tokens of the interval of
`filter_narrowing.py` are copied. Blocks whose maxima lie deeper are not read.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row.
"""

import triton
import triton.language as tl

from kernels.block_bounds import block_start, load_row_maximum
from kernels.filter_bins import MAX_CANDIDATES, NUM_BINS, bins_of, last_candidate_bin, load_filters
from kernels.filter_narrowing import final_interval
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float, load_scaled, make_finite


@triton.jit(do_not_specialize=["num_blocks", "blocks_per_program"])
def gather_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    maxima_ptr,  # [S, num_blocks]
    histogram_ptr,  # int32 [S, NUM_BINS + 1]
    mass_ptr,  # int64 [S]
    pivots_ptr,  # [S, NUM_ROUNDS, NUM_PIVOTS]
    sums_ptr,  # int64 [S, NUM_ROUNDS, NUM_PIVOTS]
    candidates_ptr,  # [S, MAX_CANDIDATES]
    logits_stride,
    fields_stride,
    vocab_size,
    num_blocks,
    blocks_per_program,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
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
    row_histogram_ptr = histogram_ptr + i * (NUM_BINS + 1)
    top_p = load_float(record_ptr, TOP_P)
    last, num_candidates = last_candidate_bin(row_histogram_ptr, limited, top_k, top_p)
    is_flat = num_candidates > MAX_CANDIDATES
    low, high = float("-inf"), float("inf")
    if is_flat:
        if limited:
            return
        low, high, _above = final_interval(pivots_ptr, sums_ptr, mass_ptr, i, top_p)
    row_max = load_row_maximum(maxima_ptr + i * num_blocks, num_blocks, LANES)
    for block in range(first, tl.minimum(first + blocks_per_program, num_blocks)):
        block_max = tl.load(maxima_ptr + i * num_blocks + block)
        if bins_of(block_max, row_max, limited, temperature) <= last:
            token_ids = block_start(block, vocab_size, BLOCK) + tl.arange(0, BLOCK)
            is_new = token_ids >= block * BLOCK
            offsets = i.to(tl.int64) * logits_stride + token_ids
            logits = tl.load(logits_ptr + offsets)
            if is_flat:
                finite = make_finite(logits)
                in_reach = (finite >= low) & (finite < high)
            else:
                in_reach = bins_of(logits, row_max, limited, temperature) <= last
            kept = (is_new & in_reach).to(tl.int32)
            place = tl.atomic_add(row_histogram_ptr + NUM_BINS, tl.sum(kept, axis=0))
            places = place + tl.cumsum(kept, axis=0) - 1
            has_place = (kept > 0) & (places < MAX_CANDIDATES)
            scaled = load_scaled(logits_ptr, offsets, has_place, row_max, temperature)
            tl.store(candidates_ptr + i * MAX_CANDIDATES + places, scaled, mask=has_place)
