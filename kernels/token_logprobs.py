"""Log-probabilities of the chosen tokens, their ranks, and the most likely tokens.

    logprob[i] = logits[i, id] - log sum_v exp(logits[i, v]),   rank[i] = 1 + #{v: logits[i, v] > logits[i, id]}

A first launch reduces each split of the vocabulary to its maximum, its sum of exponentials, its count and its own
`num_top` largest, found one after the other in registers; a second reduces the splits of a row in the same way. All
values subtract one normalizer, so equal logits get equal values. Equal logits come in the order of their ids.
Non-finite logits count as `make_finite` says.

Traffic: 4·V bytes a row; `num_top` reductions over each split: bound by their latency. It runs only for rows that want
log-probabilities. Measured: see docs/log.md.

Legend: n = rows, V = vocabulary, s = splits of the vocabulary.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.sampling_fields import make_finite

_BLOCK = 4096


@triton.jit
def _take_largest(values, lanes, NUM_TOP: tl.constexpr, TOP_BLOCK: tl.constexpr):
    """The NUM_TOP largest of `values` and their lanes, falling, the leftmost of equals first: [TOP_BLOCK] each."""
    slots = tl.arange(0, TOP_BLOCK)
    largest = tl.full((TOP_BLOCK,), float("-inf"), tl.float32)
    places = tl.zeros((TOP_BLOCK,), tl.int32)
    for j in range(NUM_TOP):
        value, place = tl.max(values, axis=0, return_indices=True, return_indices_tie_break_left=True)
        largest = tl.where(slots == j, value, largest)
        places = tl.where(slots == j, place, places)
        values = tl.where(lanes == place, float("-inf"), values)
    return largest, places


@triton.jit
def _load_chosen(row_ptr, token_id_ptr, vocab_size):
    """The logit of a row's token; of some token where the row sampled nothing and the id means nothing."""
    token_id = tl.load(token_id_ptr)
    return make_finite(tl.load(row_ptr + tl.minimum(tl.maximum(token_id, 0), vocab_size - 1)))


@triton.jit
def _split_kernel(
    logits_ptr,  # [n, vocab_size], row stride logits_stride
    token_ids_ptr,  # int32 [n]
    statistics_ptr,  # [n, 2, s]: maximum, sum of exp(logit - maximum)
    counts_ptr,  # int32 [n, s]: logits above the chosen one's
    top_values_ptr,  # [n, s, TOP_BLOCK]
    top_ids_ptr,  # int32 [n, s, TOP_BLOCK]
    logits_stride,
    vocab_size,
    num_splits,
    NUM_TOP: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    split, i = tl.program_id(0), tl.program_id(1)
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    lanes = tl.arange(0, BLOCK)
    mask = split * BLOCK + lanes < vocab_size
    logits = make_finite(tl.load(row_ptr + split * BLOCK + lanes, mask=mask, other=0.0))
    chosen = _load_chosen(row_ptr, token_ids_ptr + i, vocab_size)
    logits = tl.where(mask, logits, float("-inf"))
    maximum = tl.max(logits, axis=0)
    tl.store(statistics_ptr + (2 * i) * num_splits + split, maximum)
    tl.store(statistics_ptr + (2 * i + 1) * num_splits + split, tl.sum(tl.exp(logits - maximum), axis=0))
    tl.store(counts_ptr + i * num_splits + split, tl.sum((logits > chosen).to(tl.int32), axis=0))
    if NUM_TOP > 0:
        largest, places = _take_largest(logits, lanes, NUM_TOP, TOP_BLOCK)
        at = (i * num_splits + split) * TOP_BLOCK + tl.arange(0, TOP_BLOCK)
        tl.store(top_values_ptr + at, largest)
        tl.store(top_ids_ptr + at, split * BLOCK + places)


@triton.jit
def _merge_kernel(
    logits_ptr,  # [n, vocab_size], row stride logits_stride
    token_ids_ptr,  # int32 [n]
    statistics_ptr,  # as written by _split_kernel, like the next three
    counts_ptr,
    top_values_ptr,
    top_ids_ptr,
    logprobs_ptr,  # [n]
    ranks_ptr,  # int32 [n]
    out_ids_ptr,  # int32 [n, NUM_TOP]
    out_logprobs_ptr,  # [n, NUM_TOP]
    logits_stride,
    vocab_size,
    num_splits,
    NUM_TOP: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    splits = tl.arange(0, SPLITS_BLOCK)
    mask = splits < num_splits
    maxima = tl.load(statistics_ptr + (2 * i) * num_splits + splits, mask=mask, other=float("-inf"))
    sums = tl.load(statistics_ptr + (2 * i + 1) * num_splits + splits, mask=mask, other=0.0)
    maximum = tl.max(maxima, axis=0)
    normalizer = maximum + tl.log(tl.sum(sums * tl.exp(maxima - maximum), axis=0))
    chosen = _load_chosen(logits_ptr + i.to(tl.int64) * logits_stride, token_ids_ptr + i, vocab_size)
    tl.store(logprobs_ptr + i, chosen - normalizer)
    counts = tl.load(counts_ptr + i * num_splits + splits, mask=mask, other=0)
    tl.store(ranks_ptr + i, tl.sum(counts, axis=0) + 1)
    if NUM_TOP > 0:
        lanes = tl.arange(0, SPLITS_BLOCK * TOP_BLOCK)
        first = i * num_splits * TOP_BLOCK
        values = tl.load(top_values_ptr + first + lanes, mask=lanes < num_splits * TOP_BLOCK, other=float("-inf"))
        largest, places = _take_largest(values, lanes, NUM_TOP, TOP_BLOCK)
        slots = tl.arange(0, TOP_BLOCK)
        tl.store(out_logprobs_ptr + i * NUM_TOP + slots, largest - normalizer, mask=slots < NUM_TOP)
        ids = tl.load(top_ids_ptr + first + places, mask=slots < NUM_TOP, other=0)
        tl.store(out_ids_ptr + i * NUM_TOP + slots, ids, mask=slots < NUM_TOP)


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For `token_ids` (int32 [n]) and raw `logits` (float32 [n, V], rows may lie apart): log-probabilities [n], ranks
    int32 [n] (1: none is more likely), the `num_top` most likely ids int32 [n, num_top] and their log-probabilities.
    A kernel is compiled for each `num_top`: serve with one and slice."""
    num_rows, vocab_size = logits.shape
    check_rows(logits, (num_rows, vocab_size), torch.float32)
    check_dense(token_ids, (num_rows,), torch.int32)
    assert 0 <= num_top <= min(32, vocab_size), (num_top, vocab_size)
    num_splits, top_block = triton.cdiv(vocab_size, _BLOCK), triton.next_power_of_2(max(num_top, 1))

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits.device)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=logits.device)

    splits = floats(num_rows, 2, num_splits), integers(num_rows, num_splits)
    tops = floats(num_rows, num_splits, top_block), integers(num_rows, num_splits, top_block)
    out = floats(num_rows), integers(num_rows), integers(num_rows, num_top), floats(num_rows, num_top)
    _split_kernel[(num_splits, num_rows)](
        logits,
        token_ids,
        *splits,
        *tops,
        logits.stride(0),
        vocab_size,
        num_splits,
        NUM_TOP=num_top,
        TOP_BLOCK=top_block,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    _merge_kernel[(num_rows,)](
        logits,
        token_ids,
        *splits,
        *tops,
        *out,
        logits.stride(0),
        vocab_size,
        num_splits,
        NUM_TOP=num_top,
        TOP_BLOCK=top_block,
        SPLITS_BLOCK=triton.next_power_of_2(num_splits),
        num_warps=4,
    )
    return out
