"""The smallest scaled logit that each row keeps under min-p, top-k and top-p, without a sort.

With s = (logit - row maximum) / temperature and w = exp(s), the filters are thresholds on s, in this order, each on
what the one before left; tokens of equal s are kept or dropped together:

    min-p   s >= log(min_p)
    top-k   s >= the k-th largest s                                         (0 or at least V: all)
    top-p   s >= the largest t with sum of w over {s >= t} >= top_p · sum of w over what is left
                                                                            (Holtzman et al. 2020)

A histogram (`filter_bins.py`) tells how many tokens can decide. Where a nucleus has too many of them (a flat
distribution), three launches narrow down where it ends (`filter_narrowing.py`). The candidates are gathered
(`filter_candidates.py`), and the last launch, the search, finds the exact threshold among them, one program a row: four
bits of its float32 pattern at a time, counting or summing against 16 pivots at once.

A row whose candidates still do not fit (top-k of thousands, thousands of equal logits) is searched as a whole instead:
slow, but right. Sums are integers in units of 2^-40, so they depend on no order and the result is reproducible.

Traffic: the search works in the caches, bound by the latency of up to 16 passes over a few hundred candidates.
Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, B = blocks of a row.
"""

import torch
import triton
import triton.language as tl

from kernels.block_bounds import Blocks, load_row_maximum
from kernels.checks import check_dense
from kernels.filter_bins import (
    MAX_CANDIDATES,
    NUM_BINS,
    UNIT,
    histogram_kernel,
    last_candidate_bin,
    least_scaled,
    load_filters,
    share_of,
)
from kernels.filter_candidates import gather_kernel
from kernels.filter_narrowing import NUM_PIVOTS, NUM_ROUNDS, final_interval, narrowing_kernel
from kernels.launch import bind
from kernels.programmatic import let_dependents_start, wait_for_earlier_kernels
from kernels.sampling_fields import load_float, load_scaled
from kernels.step_tensors import SampledRows

_TILE = tl.constexpr(512)


@triton.jit
def _masses(scaled, threshold):
    """exp(scaled) in integer units, 0 below the threshold."""
    return tl.where(scaled >= threshold, (tl.exp(scaled) * UNIT).to(tl.int64), 0)


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


@triton.jit(do_not_specialize=["num_blocks"])
def _search_kernel(
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
    thresholds_ptr,  # [S]
    logits_stride,
    fields_stride,
    vocab_size,
    num_blocks,
    TEMPERATURE: tl.constexpr,  # these are columns of the records
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    LANES: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    temperature, top_k, limited, nucleus = load_filters(record_ptr, vocab_size, TEMPERATURE, TOP_K, TOP_P)
    top_p = load_float(record_ptr, TOP_P)
    threshold = least_scaled(record_ptr, MIN_P)
    if limited | nucleus:
        row_max = load_row_maximum(maxima_ptr + i * num_blocks, num_blocks, LANES)
        _, length = last_candidate_bin(histogram_ptr + i * (NUM_BINS + 1), limited, top_k, top_p)
        source_ptr = candidates_ptr + i * MAX_CANDIDATES
        wanted = share_of(tl.load(mass_ptr + i), top_p)
        if (not limited) & (length > MAX_CANDIDATES):
            wanted -= final_interval(pivots_ptr, sums_ptr, mass_ptr, i, top_p)[2]
            length = tl.load(histogram_ptr + i * (NUM_BINS + 1) + NUM_BINS)
        whole_row = length > MAX_CANDIDATES
        if (not limited) & (not whole_row):
            whole_row = _sum_from(source_ptr, length, 0.0, 1.0, threshold) < wanted
        # Candidates are scaled already.
        row_max = tl.where(whole_row, row_max, 0.0)
        temperature = tl.where(whole_row, temperature, 1.0)
        length = tl.where(whole_row, vocab_size, length)
        if whole_row:
            source_ptr = logits_ptr + i.to(tl.int64) * logits_stride
            wanted = share_of(tl.load(mass_ptr + i), top_p)
        if limited:
            kth = _search(source_ptr, length, row_max, temperature, threshold, top_k.to(tl.int64), COUNT=True)
            threshold = tl.maximum(threshold, kth)
            left = _sum_from(source_ptr, length, row_max, temperature, threshold)
            wanted = share_of(left, top_p)
        if nucleus:
            pivot = _search(source_ptr, length, row_max, temperature, threshold, wanted, COUNT=False)
            threshold = tl.maximum(threshold, pivot)
        tl.debug_barrier()  # all have read what the next step finds empty
        bins = tl.arange(0, 2 * NUM_BINS)
        tl.store(histogram_ptr + i * (NUM_BINS + 1) + bins, tl.zeros((2 * NUM_BINS,), tl.int32), mask=bins <= NUM_BINS)
        tl.store(mass_ptr + i, tl.zeros((), tl.int64))
        pivots = tl.arange(0, 4 * NUM_PIVOTS)
        is_sum = pivots < NUM_ROUNDS * NUM_PIVOTS
        row_sums_ptr = sums_ptr + i * (NUM_ROUNDS * NUM_PIVOTS)
        tl.store(row_sums_ptr + pivots, tl.zeros((4 * NUM_PIVOTS,), tl.int64), mask=is_sum)
    tl.store(thresholds_ptr + i, threshold)


class FilterThresholds:
    """Finds the thresholds of steps whose inputs always lie in the same tensors."""

    def __init__(self, logits: torch.Tensor, step: SampledRows, maxima: torch.Tensor, thresholds: torch.Tensor) -> None:
        """All at full capacity: `logits` float32 [S, V], rows may lie apart; `step` of S rows; `maxima` float32 [S, B]
        as `BlockBounds` leaves them; `thresholds` float32 [S], the result."""
        capacity, vocab_size = logits.shape
        assert vocab_size < 2**22, vocab_size  # more could overflow the integer sums
        self._blocks = Blocks.of(vocab_size)
        check_dense(maxima, (capacity, self._blocks.count), torch.float32)
        check_dense(thresholds, (capacity,), torch.float32)

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=logits.device)

        # Tokens by bin and, last, how many candidates were gathered; the sum of w over s >= log(min_p). The search
        # leaves both empty.
        histogram = zeros(capacity, NUM_BINS.value + 1, dtype=torch.int32)
        mass = zeros(capacity, dtype=torch.int64)
        candidates = zeros(capacity, MAX_CANDIDATES.value, dtype=torch.float32)  # their s, in no particular order
        # Of the narrowing of flat rows; the search leaves the sums empty, too.
        places = (capacity, NUM_ROUNDS.value, NUM_PIVOTS.value)
        narrowing = {"pivots_ptr": zeros(*places, dtype=torch.float32), "sums_ptr": zeros(*places, dtype=torch.int64)}
        inputs = {
            "logits_ptr": logits,
            "rows_ptr": step.rows,
            "samples_ptr": step.samples,
            "fields_ptr": step.fields,
            "maxima_ptr": maxima,
            "histogram_ptr": histogram,
            "logits_stride": logits.stride(0),
            "fields_stride": step.fields.stride(0),
            "vocab_size": vocab_size,
            **self._blocks.constants(),
            **step.constants("temperature", "top_k", "top_p"),
        }
        varying = {"blocks_per_program": 1}
        least = step.constants("min_p")
        names = tuple(varying)
        arguments = {**inputs, **varying, "mass_ptr": mass}
        self._count = bind(histogram_kernel, {**arguments, **least}, names, 4, overlaps=True)
        arguments |= narrowing
        self._narrow = [
            bind(narrowing_kernel, {**arguments, **least, "ROUND": index}, names, 4, overlaps=True)
            for index in range(NUM_ROUNDS.value)
        ]
        self._gather = bind(gather_kernel, {**arguments, "candidates_ptr": candidates}, names, 4, overlaps=True)
        tensors = {"mass_ptr": mass, **narrowing, "candidates_ptr": candidates, "thresholds_ptr": thresholds}
        del inputs["BLOCK"]
        self._search = bind(_search_kernel, {**inputs, **tensors, **least}, num_warps=8, overlaps=True)

    def find(self, num_rows: int) -> None:
        """The thresholds on scaled logits of the step's first `num_rows` rows, of those that sample. -inf for rows
        without a filter; a greedy row's means nothing."""
        programs, blocks = self._blocks.programs(num_rows)
        self._count(programs, num_rows, blocks)
        for narrow in self._narrow:
            narrow(programs, num_rows, blocks)
        self._gather(programs, num_rows, blocks)
        self._search(num_rows, 1)
