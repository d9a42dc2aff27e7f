"""What rules tokens out before one is chosen, in place: all but a list, bad words, all but the end of thinking.

    keep_allowed       logits[i, v] = the lowest number                     where v is not in the row's list
    follow_sequences   logits[i, w[-1]] = the lowest number                 for bad words w with whose other tokens the
                                                                            output ends
                       logits[i, v] = 0 if v = end[(n - begin - budget) % its length], else the lowest number
                                                                            once n - begin >= budget

where n is the number of output tokens and `begin` of them came before the row began to think; it thinks no more when
its output ends with `end`, which so many forced tokens see to. A row's latest tokens and `begin` are kept here: each
launch first takes in the token that the row sampled before, so it has to be launched in every step that samples.

Sequences stand with their last token first, -1 behind their first one. The lowest number beats whatever other
processors have made of a logit, so these run last. Rows that ask for nothing cost a program that returns at once.

Traffic: lists of a few KB a row, and where all but some tokens are ruled out 4·V bytes a row, written once.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, MA = most ids allowed, K = most sequences, L = most tokens
of a sequence, a power of two.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense
from kernels.sampling_fields import LOWEST, make_finite
from kernels.step_tensors import RowTensors, SampledRows

_FILL_BLOCK = 4096
_NOT_BEGUN = tl.constexpr(-1)
_ENDED = tl.constexpr(-2)
_START, _END, _FIRST_BAD_WORD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Places among a row's sequences."""


@triton.jit
def _rule_out_all(row_ptr, vocab_size, BLOCK: tl.constexpr):
    """Writes the lowest number to all of a row's logits; loads before and stores behind it keep their order."""
    tl.debug_barrier()
    lanes = tl.arange(0, BLOCK)
    for start in range(0, vocab_size, BLOCK):
        tl.store(row_ptr + start + lanes, tl.full((BLOCK,), LOWEST, tl.float32), mask=start + lanes < vocab_size)
    tl.debug_barrier()


@triton.jit
def _allowed_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    allowed_ids_ptr,  # int32 [S, MA], row stride allowed_stride
    logits_stride,
    fields_stride,
    allowed_stride,
    vocab_size,
    ALLOWED_LENGTH: tl.constexpr,  # a column of the records
    IDS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    row = tl.load(rows_ptr + i)
    length = tl.load(fields_ptr + row * fields_stride + ALLOWED_LENGTH)
    if length == 0:
        return
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    entries = tl.arange(0, IDS_BLOCK)
    ids = tl.load(allowed_ids_ptr + row * allowed_stride + entries, mask=entries < length, other=-1)
    mask = (ids >= 0) & (ids < vocab_size)
    kept = make_finite(tl.load(row_ptr + ids, mask=mask, other=0.0))
    _rule_out_all(row_ptr, vocab_size, BLOCK)
    tl.store(row_ptr + ids, kept, mask=mask)


@triton.jit
def _is_end(sequence, tail, is_known):
    """Whether an output ends with `sequence` [L]; `tail` [L] are its last tokens, the last one first."""
    length = tl.sum((sequence >= 0).to(tl.int32), axis=0)
    num_equal = tl.sum(((sequence >= 0) & is_known & (sequence == tail)).to(tl.int32), axis=0)
    return (length > 0) & (num_equal == length)


@triton.jit
def _sequences_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    seq_lens_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    sequences_ptr,  # int32 [S, K, L], row stride sequences_stride
    latest_tokens_ptr,  # int32 [S, L]
    thinking_begin_ptr,  # int32 [S]
    last_token_ptr,  # int32 [S]
    logits_stride,
    fields_stride,
    sequences_stride,
    vocab_size,
    NUM_PROMPT_TOKENS: tl.constexpr,  # these are columns of the records
    NUM_OUTPUT_TOKENS: tl.constexpr,
    NUM_SEQUENCES: tl.constexpr,
    THINKING_BUDGET: tl.constexpr,
    LENGTH: tl.constexpr,  # L
    SEQUENCES_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    row = tl.load(rows_ptr + i)
    record_ptr = fields_ptr + row * fields_stride
    num_sequences = tl.load(record_ptr + NUM_SEQUENCES)
    if num_sequences == 0:
        return
    row_ptr = logits_ptr + i.to(tl.int64) * logits_stride
    seq_len = tl.load(seq_lens_ptr + i)
    num_outputs = seq_len - tl.load(record_ptr + NUM_PROMPT_TOKENS)
    lanes = tl.arange(0, LENGTH)
    latest_ptr = latest_tokens_ptr + row * LENGTH
    last_ptr = latest_ptr + ((seq_len - 1) & (LENGTH - 1))
    if num_outputs > tl.load(record_ptr + NUM_OUTPUT_TOKENS):  # else the plan brought them all
        tl.store(last_ptr, tl.load(last_token_ptr + row))
    tl.debug_barrier()
    # The last token first; those that would be in the prompt are not known.
    tail = tl.load(latest_ptr + ((seq_len - 1 - lanes) & (LENGTH - 1)))
    tail_before_next = tl.load(latest_ptr + ((seq_len - lanes) & (LENGTH - 1)))

    places = tl.arange(0, SEQUENCES_BLOCK)
    words_ptr = sequences_ptr + row * sequences_stride
    is_bad_word = (places >= _FIRST_BAD_WORD) & (places < num_sequences)
    words = tl.load(words_ptr + places[:, None] * LENGTH + lanes[None, :], mask=is_bad_word[:, None], other=-1)
    fits = (words == tail_before_next[None, :]) & (lanes <= num_outputs)[None, :]
    misses = (words >= 0) & (lanes > 0)[None, :] & ~fits
    completes = is_bad_word & (tl.sum(misses.to(tl.int32), axis=1) == 0)
    next_ids = tl.sum(tl.where((lanes == 0)[None, :], words, 0), axis=1)
    mask = completes & (next_ids >= 0) & (next_ids < vocab_size)
    tl.store(row_ptr + next_ids, tl.full((SEQUENCES_BLOCK,), LOWEST, tl.float32), mask=mask)

    budget = tl.load(record_ptr + THINKING_BUDGET)
    if budget >= 0:
        start = tl.load(words_ptr + _START * LENGTH + lanes)
        end = tl.load(words_ptr + _END * LENGTH + lanes)
        begin = tl.load(thinking_begin_ptr + row)
        begins = (begin == _NOT_BEGUN) & _is_end(start, tail, lanes < num_outputs)
        begin = tl.where(begins, num_outputs, begin)
        ends = (begin >= 0) & _is_end(end, tail, lanes < num_outputs - begin)
        begin = tl.where(ends, _ENDED, begin)
        tl.store(thinking_begin_ptr + row, begin)
        num_over = num_outputs - begin - budget
        if (begin >= 0) & (num_over >= 0):
            end_length = tl.sum((end >= 0).to(tl.int32), axis=0)
            lane = end_length - 1 - num_over % tl.maximum(end_length, 1)
            forced = tl.sum(tl.where(lanes == lane, end, 0), axis=0)
            _rule_out_all(row_ptr, vocab_size, BLOCK)
            tl.store(row_ptr + forced, 0.0)


def keep_allowed(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Rules out all tokens but the first `allowed_length` of each row's `allowed_ids` (int32 [S, MA]), where it has
    any."""
    step.check_logits(logits)
    allowed_ids = rows.allowed_ids
    check_dense(allowed_ids, (len(step.fields), allowed_ids.shape[1]), torch.int32)
    _allowed_kernel[(len(step),)](
        logits,
        step.rows,
        step.samples,
        step.fields,
        allowed_ids,
        logits.stride(0),
        step.fields.stride(0),
        allowed_ids.stride(0),
        logits.shape[1],
        IDS_BLOCK=triton.next_power_of_2(allowed_ids.shape[1]),
        BLOCK=_FILL_BLOCK,
        num_warps=8,
        **step.constants("allowed_length"),
    )


def follow_sequences(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Rules out what would complete a bad word, forces the end of thinking. `sequences` int32 [S, K, L]: what begins
    thinking, what ends it, bad words; `latest_tokens` int32 [S, L] and `thinking_begin` int32 [S] are kept up to date
    with `last_token` int32 [S], which has each row's token of the step before."""
    step.check_logits(logits)
    num_rows, most, length = rows.sequences.shape
    check_dense(rows.sequences, (len(step.fields), most, length), torch.int32)
    check_dense(rows.latest_tokens, (num_rows, length), torch.int32)
    check_dense(rows.thinking_begin, (num_rows,), torch.int32)
    check_dense(rows.last_token, (num_rows,), torch.int32)
    assert length == triton.next_power_of_2(length), length
    _sequences_kernel[(len(step),)](
        logits,
        step.rows,
        step.samples,
        step.seq_lens,
        step.fields,
        rows.sequences,
        rows.latest_tokens,
        rows.thinking_begin,
        rows.last_token,
        logits.stride(0),
        step.fields.stride(0),
        rows.sequences.stride(0),
        logits.shape[1],
        LENGTH=length,
        SEQUENCES_BLOCK=triton.next_power_of_2(most),
        BLOCK=_FILL_BLOCK,
        num_warps=8,
        **step.constants("num_prompt_tokens", "num_output_tokens", "num_sequences", "thinking_budget"),
    )
