"""What changes logits before a token is chosen, in place, in this order.

    add_logit_bias     logits[i, id] += value                               for the (id, value) of the row, id < V
    apply_penalties    logits[i, v] = l / repetition if l > 0 else l · repetition   where v is in prompt or output
                                                                            (Keskar et al. 2019)
                       logits[i, v] -= frequency · count + presence · (count > 0)          (OpenAI's definition)
    hold_back_stops    logits[i, id] = the lowest number                    for stop ids, before min_tokens tokens

A held-back token is out whatever else happens to it, so that comes last although requests are checked for it second.
Rows that ask for nothing are left alone and cost a program that returns at once; the host launches only what some row
of the step asks for. Logits that one of these reads become finite first (`make_finite`); all others are made finite by
whoever reads them later.

Traffic: bias and stops a few KB a row, bound by the launch; penalties 13·V bytes a row (logits in and out, a byte of
mask, a count), each once: bound by memory. Measured: see docs/log.md.

Legend: N = scheduled rows, S = max_num_seqs, V = vocabulary, P = rows of the penalty pool, MB = most biases of a row,
MS = most stop ids of a row.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.sampling_fields import LOWEST, load_float, make_finite
from kernels.step_tensors import RowTensors, SampledRows

_PENALTIES_BLOCK = 2048


@triton.jit
def _logit_bias_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    bias_ids_ptr,  # int32 [S, MB], row stride bias_stride
    bias_values_ptr,  # [S, MB], row stride bias_stride
    logits_stride,
    fields_stride,
    bias_stride,
    vocab_size,
    BIAS_LENGTH: tl.constexpr,  # a column of the records
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    row = tl.load(rows_ptr + i)
    length = tl.load(fields_ptr + row * fields_stride + BIAS_LENGTH)
    if length == 0:
        return
    entries = tl.arange(0, BLOCK)
    ids = tl.load(bias_ids_ptr + row * bias_stride + entries, mask=entries < length, other=-1)
    values = tl.load(bias_values_ptr + row * bias_stride + entries, mask=entries < length, other=0.0)
    mask = (ids >= 0) & (ids < vocab_size)
    # Ids are distinct (the keys of a mapping), so no two lanes meet.
    at = logits_ptr + i.to(tl.int64) * logits_stride + ids
    tl.store(at, make_finite(tl.load(at, mask=mask, other=0.0)) + values, mask=mask)


@triton.jit
def _penalties_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    prompt_mask_ptr,  # uint8 [P, vocab_size], row stride mask_stride
    output_counts_ptr,  # int32 [P, vocab_size], row stride counts_stride
    logits_stride,
    fields_stride,
    mask_stride,
    counts_stride,
    vocab_size,
    PENALTY_SLOT: tl.constexpr,  # these are columns of the records
    REPETITION: tl.constexpr,
    PRESENCE: tl.constexpr,
    FREQUENCY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(1)
    if tl.load(samples_ptr + i) == 0:
        return
    record_ptr = fields_ptr + tl.load(rows_ptr + i) * fields_stride
    slot = tl.load(record_ptr + PENALTY_SLOT)
    if slot < 0:
        return
    slot = slot.to(tl.int64)
    token_ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = token_ids < vocab_size
    logits_ptrs = logits_ptr + i.to(tl.int64) * logits_stride + token_ids
    logits = make_finite(tl.load(logits_ptrs, mask=mask, other=0.0))
    in_prompt = tl.load(prompt_mask_ptr + slot * mask_stride + token_ids, mask=mask, other=0) != 0
    counts = tl.load(output_counts_ptr + slot * counts_stride + token_ids, mask=mask, other=0)
    factor = tl.where(in_prompt | (counts > 0), load_float(record_ptr, REPETITION), 1.0)
    logits = tl.where(logits > 0, tl.div_rn(logits, factor), logits * factor)
    logits -= load_float(record_ptr, FREQUENCY) * counts.to(tl.float32)
    logits -= tl.where(counts > 0, load_float(record_ptr, PRESENCE), 0.0)
    tl.store(logits_ptrs, logits, mask=mask)


@triton.jit
def _stops_kernel(
    logits_ptr,  # [N, vocab_size], row stride logits_stride
    rows_ptr,  # int32 [N]
    samples_ptr,  # int32 [N]
    seq_lens_ptr,  # int32 [N]
    fields_ptr,  # int32 [S, fields_stride]
    stop_ids_ptr,  # int32 [S, MS], row stride stops_stride
    logits_stride,
    fields_stride,
    stops_stride,
    vocab_size,
    STOP_LENGTH: tl.constexpr,  # these are columns of the records
    NUM_PROMPT_TOKENS: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    if tl.load(samples_ptr + i) == 0:
        return
    row = tl.load(rows_ptr + i)
    record_ptr = fields_ptr + row * fields_stride
    num_outputs = tl.load(seq_lens_ptr + i) - tl.load(record_ptr + NUM_PROMPT_TOKENS)
    if num_outputs >= tl.load(record_ptr + MIN_TOKENS):
        return
    entries = tl.arange(0, BLOCK)
    mask = entries < tl.load(record_ptr + STOP_LENGTH)
    ids = tl.load(stop_ids_ptr + row * stops_stride + entries, mask=mask, other=-1)
    at = logits_ptr + i.to(tl.int64) * logits_stride + ids
    tl.store(at, tl.full((BLOCK,), LOWEST, tl.float32), mask=(ids >= 0) & (ids < vocab_size))


def add_logit_bias(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Adds the first `bias_length` entries of each row's `bias_values` (float32 [S, MB]) to the logits [N, V] of its
    `bias_ids` (int32 [S, MB], distinct)."""
    step.check_logits(logits)
    bias_ids, bias_values = rows.bias_ids, rows.bias_values
    shape = len(step.fields), bias_ids.shape[1]
    check_dense(bias_ids, shape, torch.int32)
    check_dense(bias_values, shape, torch.float32)
    _logit_bias_kernel[(len(step),)](
        logits,
        step.rows,
        step.samples,
        step.fields,
        bias_ids,
        bias_values,
        logits.stride(0),
        step.fields.stride(0),
        bias_ids.stride(0),
        logits.shape[1],
        BLOCK=triton.next_power_of_2(bias_ids.shape[1]),
        num_warps=4,
        **step.constants("bias_length"),
    )


def apply_penalties(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Penalizes tokens of the rows that have a slot in the pool: `prompt_mask` (uint8 [P, V], 1: in the prompt) and
    `output_counts` (int32 [P, V])."""
    step.check_logits(logits)
    prompt_mask, output_counts = rows.prompt_mask, rows.output_counts
    vocab_size = logits.shape[1]
    check_rows(prompt_mask, (len(prompt_mask), vocab_size), torch.uint8)
    check_rows(output_counts, (len(prompt_mask), vocab_size), torch.int32)
    _penalties_kernel[(triton.cdiv(vocab_size, _PENALTIES_BLOCK), len(step))](
        logits,
        step.rows,
        step.samples,
        step.fields,
        prompt_mask,
        output_counts,
        logits.stride(0),
        step.fields.stride(0),
        prompt_mask.stride(0),
        output_counts.stride(0),
        vocab_size,
        PENALTY_SLOT=step.columns["penalty_slot"],
        REPETITION=step.columns["repetition_penalty"],
        PRESENCE=step.columns["presence_penalty"],
        FREQUENCY=step.columns["frequency_penalty"],
        BLOCK=_PENALTIES_BLOCK,
        num_warps=8,
    )


def hold_back_stops(logits: torch.Tensor, step: SampledRows, rows: RowTensors) -> None:
    """Rules out the first `stop_length` of each row's `stop_ids` (int32 [S, MS]) while it has generated fewer than
    `min_tokens` tokens."""
    step.check_logits(logits)
    stop_ids = rows.stop_ids
    check_dense(stop_ids, (len(step.fields), stop_ids.shape[1]), torch.int32)
    _stops_kernel[(len(step),)](
        logits,
        step.rows,
        step.samples,
        step.seq_lens,
        step.fields,
        stop_ids,
        logits.stride(0),
        step.fields.stride(0),
        stop_ids.stride(0),
        logits.shape[1],
        BLOCK=triton.next_power_of_2(stop_ids.shape[1]),
        num_warps=1,
        **step.constants("stop_length", "num_prompt_tokens", "min_tokens"),
    )
