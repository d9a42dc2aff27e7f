"""The rows: what the worker remembers of each running request between steps. Applies a plan's deltas to them.

A row's tensors live on the device and a plan carries only what changed. The records themselves are kept on the host as
well, because the host decides from them which of the sampler's operations a step needs at all.
"""

import numpy as np
import torch

from engine_core.ipc.row_fields import NUM_ROW_FIELDS, ROW_FIELD_INDEX, ROW_INIT_DTYPE
from engine_core.ipc.sampling_params import MAX_LOGIT_BIAS
from engine_core.ipc.step import NUM_BLOCK_DELTAS, NUM_GIVEN, NUM_ROW_INITS, StepPlan, StepShape
from gpu_workers.operations import HostOperations, StepInputs
from gpu_workers.sampling.row_sequences import RowSequences


class PenaltyPool:
    """Token counts for the rows that use penalties; a row's record names its slot."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self.prompt_mask = torch.zeros(num_slots, vocab_size, dtype=torch.bool)
        self.output_counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32)

    def start(self, slot: int, history: torch.Tensor, num_prompt_tokens: int) -> None:
        """Builds a slot from all tokens so far [num_tokens]; the first `num_prompt_tokens` are the prompt."""
        self.prompt_mask[slot].zero_()[history[:num_prompt_tokens]] = True
        output = history[num_prompt_tokens:]
        self.output_counts[slot].zero_().index_add_(0, output, torch.ones(len(output), dtype=torch.int32))

    def count(self, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
        """One more of `token_ids` [N] in the output of `slots` [N], which are distinct."""
        self.output_counts[slots, token_ids] += 1


class InputBatch:
    """The rows of one worker. Legend: S = max_num_seqs."""

    def __init__(self, shape: StepShape, vocab_size: int, num_penalty_slots: int, operations: HostOperations) -> None:
        num_rows = shape.max_num_seqs
        self._shape = shape
        self._operations = operations
        self.records = np.zeros(num_rows, ROW_INIT_DTYPE)
        """The record that each row started with."""
        # The same memory as a matrix: on the CPU device the host's copy is the device's copy.
        self._fields = torch.from_numpy(self.records.view(np.int32).reshape(num_rows, NUM_ROW_FIELDS))
        self._float_fields = self._fields.view(torch.float32)
        self.last_token = torch.zeros(num_rows, dtype=torch.long)  # [S]
        self.num_computed_tokens = torch.zeros(num_rows, dtype=torch.long)  # [S]
        self.block_tables = torch.zeros(shape.num_groups, num_rows, shape.max_blocks_per_row, dtype=torch.int32)
        self.penalties = PenaltyPool(num_penalty_slots, vocab_size)
        self.bias_ids = torch.zeros(num_rows, MAX_LOGIT_BIAS, dtype=torch.long)
        self.bias_values = torch.zeros(num_rows, MAX_LOGIT_BIAS)
        self.stop_ids: dict[int, torch.Tensor] = {}
        """Per row with min_tokens: the ids that are masked until then."""
        self.allowed_ids: dict[int, torch.Tensor] = {}
        """Per row that has such a list: the only ids that can be sampled."""
        self.sequences: dict[int, RowSequences] = {}

    def apply(self, plan: StepPlan) -> None:
        """Takes over a plan's row records, then its block table entries."""
        inits = plan.row_inits[: int(plan.header[NUM_ROW_INITS])]
        if len(inits):
            rows = torch.from_numpy(inits["row"].astype(np.int64))
            self.records[inits["row"]] = inits
            self.num_computed_tokens[rows] = torch.from_numpy(inits["num_computed_tokens"].astype(np.int64))
            self.block_tables[:, rows] = 0
            for record in inits:
                self._start_lists(record, plan.bulk)
        num_deltas = int(plan.header[NUM_BLOCK_DELTAS])
        if num_deltas:
            deltas = torch.from_numpy(plan.block_deltas[:num_deltas])
            self._operations.apply_block_deltas(self.block_tables, deltas)

    def _start_lists(self, record: np.void, bulk: np.ndarray) -> None:
        """The parts of a row that have no fixed length."""
        row = int(record["row"])
        count, offset = int(record["bias_length"]), int(record["bias_offset"])
        if count:
            self.bias_ids[row, :count] = _ids(bulk, offset, count)
            values = bulk[offset + count : offset + 2 * count].view(np.float32).copy()
            self.bias_values[row, :count] = torch.from_numpy(values)
        self.stop_ids.pop(row, None)
        if record["stop_length"]:
            self.stop_ids[row] = _ids(bulk, int(record["stop_offset"]), int(record["stop_length"]))
        self.allowed_ids.pop(row, None)
        if record["allowed_length"]:
            self.allowed_ids[row] = _ids(bulk, int(record["allowed_offset"]), int(record["allowed_length"]))
        self.sequences.pop(row, None)
        if record["num_sequences"]:
            self.sequences[row] = RowSequences(record, bulk)
        slot = int(record["penalty_slot"])
        if slot >= 0:
            history = _ids(bulk, int(record["history_offset"]), int(record["history_length"]))
            self.penalties.start(slot, history, int(record["num_prompt_tokens"]))

    def prepare(self, plan: StepPlan, rows: torch.Tensor, num_query_tokens: torch.Tensor) -> StepInputs:
        """The inputs of the plan's scheduled rows (a `StepInputs` of the device); advances their counters."""
        num_seqs = len(rows)
        return self._operations.prepare_inputs(
            rows,
            num_query_tokens,
            torch.from_numpy(plan.num_given[:num_seqs].astype(np.int64)),
            torch.from_numpy(plan.token_ids[: int(plan.header[NUM_GIVEN])].astype(np.int64)),
            self.last_token,
            self.num_computed_tokens,
            self.block_tables,
            self._shape.block_size,
        )

    def take_back(self, rows: torch.Tensor) -> None:
        """The last token of `rows` [N] counts as not computed: the next step computes it again."""
        self.num_computed_tokens[rows] -= 1

    def integers(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """An integer field of `rows` [N]."""
        return self._fields[rows, ROW_FIELD_INDEX[name]]

    def floats(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """A float field of `rows` [N]."""
        return self._float_fields[rows, ROW_FIELD_INDEX[name]]


def _ids(bulk: np.ndarray, offset: int, count: int) -> torch.Tensor:
    return torch.from_numpy(bulk[offset : offset + count].astype(np.int64))
