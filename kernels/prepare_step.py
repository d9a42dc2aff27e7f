"""What happens to the rows before a forward pass: a plan's deltas applied, the step's inputs built, all on the device.

The plan lies in device memory as one copy of its slot (`engine_core/ipc/step.py` lays it out); both kernels read its
int32 words at fixed places. `apply_plan` starts rows and extends block tables and is launched only for plans that do
so; `prepare_inputs` runs in every step. For scheduled sequence i of row r, with c tokens computed so far and q to run:

    positions = c .. c + q - 1          input_ids = [last_token[r] if one is missing] + the plan's given ids
    slot      = block_tables[g, r, position // B] * B + position % B        num_computed_tokens[r] = c + q
    last_token[r] = the last of input_ids

with a slot for each layer group g. A row that samples gets another last token; one that is skipped keeps this. The
plain versions stand in `reference_inputs.py`. Traffic is a few kilobytes: what counts is the number of launches.

Legend: S = rows, N = scheduled sequences of the padded step, T = tokens of the padded step, F = fields of a row's
record, V = vocabulary.
"""

import torch
import triton
import triton.language as tl

from kernels.launch import bind
from kernels.step_tensors import PlanPlaces, RowTensors, StepTensors

_DELTAS = 256
"""Block table entries per program."""
_CHUNK = 1024
"""Tokens at once: of a sequence's prompt, of the padding, of a history."""


_APPLY_VARYING = ("slot", "num_inits", "num_deltas")
_PREPARE_VARYING = ("slot", "num_seqs", "num_tokens", "num_padded_seqs", "num_padded_tokens")


@triton.jit(do_not_specialize=_APPLY_VARYING)
def _apply_plan_kernel(
    slot,
    num_inits,
    num_deltas,
    fields,
    num_computed_tokens,
    block_tables,
    bias_ids,
    bias_values,
    stop_ids,
    allowed_ids,
    sequences,
    latest_tokens,
    thinking_begin,
    prompt_mask,
    output_counts,
    stride_group: tl.constexpr,
    stride_row: tl.constexpr,
    vocab_size: tl.constexpr,
    max_biases: tl.constexpr,
    max_stops: tl.constexpr,
    max_allowed: tl.constexpr,
    max_sequences: tl.constexpr,
    SEQUENCE_TOKENS: tl.constexpr,  # a power of two
    AT_ROW_INITS: tl.constexpr,
    AT_BLOCK_DELTAS: tl.constexpr,
    AT_BULK: tl.constexpr,
    NUM_FIELDS: tl.constexpr,
    FIELD_NUM_COMPUTED_TOKENS: tl.constexpr,
    FIELD_NUM_PROMPT_TOKENS: tl.constexpr,
    FIELD_PENALTY_SLOT: tl.constexpr,
    FIELD_HISTORY_OFFSET: tl.constexpr,
    FIELD_HISTORY_LENGTH: tl.constexpr,
    FIELD_BIAS_OFFSET: tl.constexpr,
    FIELD_BIAS_LENGTH: tl.constexpr,
    FIELD_STOP_OFFSET: tl.constexpr,
    FIELD_STOP_LENGTH: tl.constexpr,
    FIELD_ALLOWED_OFFSET: tl.constexpr,
    FIELD_ALLOWED_LENGTH: tl.constexpr,
    FIELD_SEQUENCES_OFFSET: tl.constexpr,
    FIELD_NUM_SEQUENCES: tl.constexpr,
    FIELD_THINKING_BEGIN: tl.constexpr,
    FIELDS_POW2: tl.constexpr,
    BIASES_POW2: tl.constexpr,
    STOPS_POW2: tl.constexpr,
    DELTAS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The first `num_inits` programs start a row each, the others write DELTAS block table entries each."""
    pid = tl.program_id(0)
    if pid >= num_inits:
        entry = (pid - num_inits) * DELTAS + tl.arange(0, DELTAS)
        is_entry = entry < num_deltas
        words = slot + AT_BLOCK_DELTAS + entry * 4
        group = tl.load(words, mask=is_entry, other=0).to(tl.int64)
        table_row = tl.load(words + 1, mask=is_entry, other=0).to(tl.int64)
        column = tl.load(words + 2, mask=is_entry, other=0)
        block = tl.load(words + 3, mask=is_entry, other=0)
        tl.store(block_tables + group * stride_group + table_row * stride_row + column, block, mask=is_entry)
    else:
        record = slot + AT_ROW_INITS + pid * NUM_FIELDS
        row = tl.load(record).to(tl.int64)
        field = tl.arange(0, FIELDS_POW2)
        values = tl.load(record + field, mask=field < NUM_FIELDS, other=0)
        tl.store(fields + row * NUM_FIELDS + field, values, mask=field < NUM_FIELDS)
        tl.store(num_computed_tokens + row, tl.load(record + FIELD_NUM_COMPUTED_TOKENS))

        bias = tl.arange(0, BIASES_POW2)
        bias_length = tl.load(record + FIELD_BIAS_LENGTH)
        bias_words = slot + AT_BULK + tl.load(record + FIELD_BIAS_OFFSET)
        is_bias = bias < tl.minimum(bias_length, max_biases)
        tl.store(bias_ids + row * max_biases + bias, tl.load(bias_words + bias, mask=is_bias, other=0), mask=is_bias)
        value = tl.load(bias_words + bias_length + bias, mask=is_bias, other=0).to(tl.float32, bitcast=True)
        tl.store(bias_values + row * max_biases + bias, value, mask=is_bias)

        stop = tl.arange(0, STOPS_POW2)
        stop_words = slot + AT_BULK + tl.load(record + FIELD_STOP_OFFSET)
        is_stop = stop < tl.minimum(tl.load(record + FIELD_STOP_LENGTH), max_stops)
        tl.store(stop_ids + row * max_stops + stop, tl.load(stop_words + stop, mask=is_stop, other=0), mask=is_stop)

        chunk = tl.arange(0, CHUNK)
        allowed_words = slot + AT_BULK + tl.load(record + FIELD_ALLOWED_OFFSET)
        num_allowed = tl.minimum(tl.load(record + FIELD_ALLOWED_LENGTH), max_allowed)
        for start in range(0, num_allowed, CHUNK):
            index = start + chunk
            is_allowed = index < num_allowed
            allowed = tl.load(allowed_words + index, mask=is_allowed, other=0)
            tl.store(allowed_ids + row * max_allowed + index, allowed, mask=is_allowed)

        num_sequences = tl.load(record + FIELD_NUM_SEQUENCES)
        if num_sequences > 0:
            sequence_words = slot + AT_BULK + tl.load(record + FIELD_SEQUENCES_OFFSET)
            num_words = tl.minimum(num_sequences, max_sequences) * SEQUENCE_TOKENS
            for start in range(0, num_words, CHUNK):
                index = start + chunk
                is_word = index < num_words
                words = tl.load(sequence_words + index, mask=is_word, other=0)
                tl.store(sequences + row * max_sequences * SEQUENCE_TOKENS + index, words, mask=is_word)
            latest = tl.arange(0, SEQUENCE_TOKENS)
            words = tl.load(sequence_words + num_sequences * SEQUENCE_TOKENS + latest)
            tl.store(latest_tokens + row * SEQUENCE_TOKENS + latest, words)
            tl.store(thinking_begin + row, tl.load(record + FIELD_THINKING_BEGIN))

        penalty_slot = tl.load(record + FIELD_PENALTY_SLOT).to(tl.int64)
        if penalty_slot >= 0:
            seen = prompt_mask + penalty_slot * vocab_size
            counts = output_counts + penalty_slot * vocab_size
            for start in range(0, vocab_size, CHUNK):
                inside = start + chunk < vocab_size
                tl.store(seen + start + chunk, tl.zeros((CHUNK,), tl.uint8), mask=inside)
                tl.store(counts + start + chunk, tl.zeros((CHUNK,), tl.int32), mask=inside)
            tl.debug_barrier()  # all zeros are there before the first count
            num_prompt_tokens = tl.load(record + FIELD_NUM_PROMPT_TOKENS)
            length = tl.load(record + FIELD_HISTORY_LENGTH)
            history = slot + AT_BULK + tl.load(record + FIELD_HISTORY_OFFSET)
            for start in range(0, length, CHUNK):
                index = start + chunk
                token = tl.load(history + index, mask=index < length, other=0)
                in_prompt = (index < length) & (index < num_prompt_tokens)
                tl.store(seen + token, tl.full((CHUNK,), 1, tl.uint8), mask=in_prompt)
                in_output = (index < length) & (index >= num_prompt_tokens)
                tl.atomic_add(counts + token, tl.full((CHUNK,), 1, tl.int32), mask=in_output)


@triton.jit(do_not_specialize=_PREPARE_VARYING)
def _prepare_inputs_kernel(
    slot,
    num_seqs,
    num_tokens,
    num_padded_seqs,
    num_padded_tokens,
    last_token,
    num_computed_tokens,
    block_tables,
    out_rows,
    out_samples,
    query_start_loc,
    seq_lens,
    logits_indices,
    input_ids,
    positions,
    slot_mapping,
    shared,
    stride_group: tl.constexpr,
    stride_row: tl.constexpr,
    stride_slots: tl.constexpr,  # from a group's slots to the next one's
    block_size: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    AT_ROWS: tl.constexpr,
    AT_NUM_QUERY_TOKENS: tl.constexpr,
    AT_NUM_GIVEN: tl.constexpr,
    AT_SAMPLES: tl.constexpr,
    AT_TOKEN_IDS: tl.constexpr,
    AT_SHARED_KEYS: tl.constexpr,
    AT_SHARING_SEQS: tl.constexpr,
    SEQS_POW2: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program i < num_padded_seqs: scheduled sequence i, or its padding; the others pad CHUNK tokens each."""
    pid = tl.program_id(0)
    chunk = tl.arange(0, CHUNK)
    if pid == 0:
        tl.store(shared, tl.load(slot + AT_SHARED_KEYS))
        tl.store(shared + 1, tl.load(slot + AT_SHARING_SEQS))
    if pid >= num_padded_seqs:
        padded = num_tokens + (pid - num_padded_seqs) * CHUNK + chunk
        is_padded = padded < num_padded_tokens
        tl.store(input_ids + padded, tl.zeros((CHUNK,), tl.int32), mask=is_padded)
        tl.store(positions + padded, tl.zeros((CHUNK,), tl.int32), mask=is_padded)
        for group in tl.static_range(NUM_GROUPS):
            no_slot = tl.full((CHUNK,), -1, tl.int32)
            tl.store(slot_mapping + group * stride_slots + padded, no_slot, mask=is_padded)
    elif pid >= num_seqs:
        tl.store(out_rows + pid, 0)
        tl.store(out_samples + pid, 0)
        tl.store(query_start_loc + pid + 1, num_tokens)
        tl.store(seq_lens + pid, 0)
        tl.store(logits_indices + pid, 0)
    else:
        before = tl.arange(0, SEQS_POW2)
        first = tl.sum(tl.load(slot + AT_NUM_QUERY_TOKENS + before, mask=before < pid, other=0))
        first_given = tl.sum(tl.load(slot + AT_NUM_GIVEN + before, mask=before < pid, other=0))
        row = tl.load(slot + AT_ROWS + pid).to(tl.int64)
        num_query_tokens = tl.load(slot + AT_NUM_QUERY_TOKENS + pid)
        num_missing = num_query_tokens - tl.load(slot + AT_NUM_GIVEN + pid)  # 0, or 1: the token that never left
        computed = tl.load(num_computed_tokens + row)
        last = tl.load(last_token + row)
        table = block_tables + row * stride_row
        for start in range(0, num_query_tokens, CHUNK):
            index = start + chunk
            mask = index < num_query_tokens
            given = tl.load(
                slot + AT_TOKEN_IDS + first_given + index - num_missing, mask=mask & (index >= num_missing), other=0
            )
            position = computed + index
            tl.store(input_ids + first + index, tl.where(index >= num_missing, given, last), mask=mask)
            tl.store(positions + first + index, position, mask=mask)
            for group in tl.static_range(NUM_GROUPS):
                block = tl.load(table + group * stride_group + position // block_size, mask=mask, other=0)
                slots = slot_mapping + group * stride_slots + first + index
                tl.store(slots, block * block_size + position % block_size, mask=mask)
        if pid == 0:
            tl.store(query_start_loc, 0)
        tl.store(out_rows + pid, row.to(tl.int32))
        tl.store(out_samples + pid, tl.load(slot + AT_SAMPLES + pid))
        tl.store(query_start_loc + pid + 1, first + num_query_tokens)
        tl.store(seq_lens + pid, computed + num_query_tokens)
        tl.store(logits_indices + pid, first + num_query_tokens - 1)
        ends_given = num_query_tokens > num_missing
        place = slot + AT_TOKEN_IDS + first_given + num_query_tokens - 1 - num_missing
        last = tl.where(ends_given, tl.load(place, mask=ends_given, other=0), last)
        tl.debug_barrier()  # all threads have read what the row was
        tl.store(last_token + row, last)
        tl.store(num_computed_tokens + row, computed + num_query_tokens)


_INIT_FIELDS = (
    "num_computed_tokens",
    "num_prompt_tokens",
    "penalty_slot",
    "history_offset",
    "history_length",
    "bias_offset",
    "bias_length",
    "stop_offset",
    "stop_length",
    "allowed_offset",
    "allowed_length",
    "sequences_offset",
    "num_sequences",
    "thinking_begin",
)


class StepPreparation:
    """Launches both kernels; everything but the plan lies in the same tensors for good."""

    def __init__(
        self, places: PlanPlaces, rows: RowTensors, step: StepTensors, block_size: int, slot: torch.Tensor
    ) -> None:
        """`slot` int32: a plan's words, an example."""
        assert slot.dtype == torch.int32
        assert rows.block_tables.is_contiguous()
        assert step.slot_mapping.is_contiguous()
        assert len(step.slot_mapping) == len(rows.block_tables)
        max_biases, max_stops = rows.bias_ids.shape[1], rows.stop_ids.shape[1]
        _, max_sequences, sequence_tokens = rows.sequences.shape
        assert sequence_tokens == triton.next_power_of_2(sequence_tokens) == rows.latest_tokens.shape[1]
        strides = {"stride_group": rows.block_tables.stride(0), "stride_row": rows.block_tables.stride(1)}
        tensors = {name: getattr(rows, name) for name in RowTensors.__slots__ if name != "last_token"}
        self._apply_plan = bind(
            _apply_plan_kernel,
            {
                **dict.fromkeys(_APPLY_VARYING, 1),
                "slot": slot,
                **tensors,
                **strides,
                "vocab_size": rows.prompt_mask.shape[1],
                "max_biases": max_biases,
                "max_stops": max_stops,
                "max_allowed": rows.allowed_ids.shape[1],
                "max_sequences": max_sequences,
                "SEQUENCE_TOKENS": sequence_tokens,
                "NUM_FIELDS": places.num_fields,
                "FIELDS_POW2": triton.next_power_of_2(places.num_fields),
                "BIASES_POW2": triton.next_power_of_2(max_biases),
                "STOPS_POW2": triton.next_power_of_2(max_stops),
                "DELTAS": _DELTAS,
                "CHUNK": _CHUNK,
                **places.constants(("row_inits", "block_deltas", "bulk"), _INIT_FIELDS),
            },
            _APPLY_VARYING,
            num_warps=8,
        )
        outputs = {name: getattr(step, name) for name in StepTensors.__slots__}
        self._prepare_inputs = bind(
            _prepare_inputs_kernel,
            {
                **dict.fromkeys(_PREPARE_VARYING, 1),
                "slot": slot,
                "last_token": rows.last_token,
                "num_computed_tokens": rows.num_computed_tokens,
                "block_tables": rows.block_tables,
                "out_rows": outputs.pop("rows"),
                "out_samples": outputs.pop("samples"),
                **outputs,
                **strides,
                "stride_slots": step.slot_mapping.stride(0),
                "block_size": block_size,
                "NUM_GROUPS": len(rows.block_tables),
                "SEQS_POW2": triton.next_power_of_2(len(step.rows)),
                "CHUNK": _CHUNK,
                "AT_SHARED_KEYS": places.shared_keys,
                "AT_SHARING_SEQS": places.sharing_seqs,
                **places.constants(("rows", "num_query_tokens", "num_given", "samples", "token_ids")),
            },
            _PREPARE_VARYING,
            num_warps=4,
        )
        self._capacity = len(step.rows), len(step.input_ids)

    def apply_plan(self, slot: torch.Tensor, num_inits: int, num_deltas: int) -> None:
        """Starts the rows of a plan's `num_inits` records and writes its `num_deltas` block table entries.

        `slot` int32: the plan's words. Lists longer than a row's room are cut; the engine's limits keep them shorter.
        """
        num_programs = num_inits + -(-num_deltas // _DELTAS)
        if num_programs:
            self._apply_plan(num_programs, 1, slot, num_inits, num_deltas)

    def prepare_inputs(
        self, slot: torch.Tensor, num_seqs: int, num_tokens: int, num_padded_seqs: int, num_padded_tokens: int
    ) -> None:
        """Builds the inputs of the plan's `num_seqs` sequences, pads them, and advances the rows' counters."""
        max_seqs, max_tokens = self._capacity
        assert num_seqs <= num_padded_seqs <= max_seqs, (num_seqs, num_padded_seqs)
        assert num_tokens <= num_padded_tokens <= max_tokens, (num_tokens, num_padded_tokens)
        num_programs = num_padded_seqs + -(-(num_padded_tokens - num_tokens) // _CHUNK)
        self._prepare_inputs(num_programs, 1, slot, num_seqs, num_tokens, num_padded_seqs, num_padded_tokens)
