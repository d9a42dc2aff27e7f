"""The rows on the device and the step's inputs there; what of them the host has to know stays on the host as well.

The host never reads the device's copy. Of each row it remembers which of the sampler's operations it needs, because
which kernels a step launches is decided before the step's results are known.
"""

import numpy as np
import torch

from engine_core.ipc.row_fields import NUM_ROW_FIELDS, ROW_FIELD_INDEX, needs_of
from engine_core.ipc.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_LOGIT_BIAS,
    MAX_SEQUENCE_TOKENS,
    MAX_STOP_TOKEN_IDS,
)
from engine_core.ipc.step import (
    MAX_SEQUENCES,
    NUM_BLOCK_DELTAS,
    NUM_ROW_INITS,
    NUM_SHARED_KEYS,
    NUM_SHARING_SEQS,
    StepPlan,
    StepShape,
    plan_layout,
)
from gpu_workers.operations import Operations
from kernels.step_tensors import PlanPlaces, RowTensors, StepTensors

MAX_HELD_BACK = MAX_STOP_TOKEN_IDS + 64
"""Stop token ids and EOS ids of one row that may not be sampled before `min_tokens`."""


def plan_places(shape: StepShape) -> PlanPlaces:
    """Where the kernels find a plan's arrays."""
    arrays = {name: offset // 4 for name, offset in plan_layout(shape).offsets.items()}
    shared = (arrays["header"] + 2 * index for index in (NUM_SHARED_KEYS, NUM_SHARING_SEQS))
    return PlanPlaces(arrays, ROW_FIELD_INDEX, NUM_ROW_FIELDS, *shared)


class ScoredPlaces:
    """Where a plan has the tokens of prompts whose log-probabilities it wants."""

    def __init__(self, shape: StepShape) -> None:
        offsets = plan_layout(shape).offsets
        self._bulk, self._indices, self._token_ids = (
            offsets[name] // 4 for name in ("bulk", "scored_indices", "scored_token_ids")
        )

    def end_in_bulk(self, num_scored: int) -> int:
        """How many words from the bulk region's beginning a plan with so many of them takes."""
        return self._token_ids + num_scored - self._bulk

    def find(self, slot: torch.Tensor, num_scored: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The places of the tokens before them and they themselves, int32 [num_scored], in the device's copy."""
        return (
            slot[self._indices : self._indices + num_scored],
            slot[self._token_ids : self._token_ids + num_scored],
        )


class Rows:
    """The rows of one worker and the inputs of the step that runs. Legend as in `kernels/prepare_step.py`."""

    def __init__(
        self,
        shape: StepShape,
        vocab_size: int,
        num_penalty_slots: int,
        operations: Operations,
        device: torch.device,
    ) -> None:
        num_rows, num_tokens = shape.max_num_seqs, shape.max_num_batched_tokens
        self._needs = np.zeros(num_rows, np.int32)
        self.scored_places = ScoredPlaces(shape)
        self._empty_plan = torch.zeros(plan_layout(shape).num_bytes // 4, dtype=torch.int32, device=device)

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.rows = RowTensors(
            fields=zeros(num_rows, NUM_ROW_FIELDS),
            last_token=zeros(num_rows),
            num_computed_tokens=zeros(num_rows),
            block_tables=zeros(shape.num_groups, num_rows, shape.max_blocks_per_row),
            bias_ids=zeros(num_rows, MAX_LOGIT_BIAS),
            bias_values=zeros(num_rows, MAX_LOGIT_BIAS, dtype=torch.float32),
            stop_ids=zeros(num_rows, MAX_HELD_BACK),
            allowed_ids=zeros(num_rows, MAX_ALLOWED_TOKEN_IDS),
            sequences=zeros(num_rows, MAX_SEQUENCES, MAX_SEQUENCE_TOKENS),
            latest_tokens=zeros(num_rows, MAX_SEQUENCE_TOKENS),
            thinking_begin=zeros(num_rows),
            prompt_mask=zeros(num_penalty_slots, vocab_size, dtype=torch.uint8),
            output_counts=zeros(num_penalty_slots, vocab_size),
        )
        self.step = StepTensors(
            rows=zeros(num_rows),
            samples=zeros(num_rows),
            query_start_loc=zeros(num_rows + 1),
            seq_lens=zeros(num_rows),
            logits_indices=zeros(num_rows),
            input_ids=zeros(num_tokens),
            positions=zeros(num_tokens),
            slot_mapping=zeros(shape.num_groups, num_tokens),
            shared=zeros(2),
        )
        self._preparation = operations.StepPreparation(
            plan_places(shape), self.rows, self.step, shape.block_size, self._empty_plan
        )

    def note(self, plan: StepPlan) -> int:
        """Takes the plan's row records over into the host's memory; returns what its rows need, as bits."""
        num_inits = int(plan.header[NUM_ROW_INITS])
        if num_inits:
            inits = plan.row_inits[:num_inits]
            self._needs[inits["row"]] = needs_of(inits)
        return int(np.bitwise_or.reduce(self._needs[plan.rows[: plan.num_seqs]]))

    def prepare(self, plan: StepPlan, slot: torch.Tensor, num_padded_seqs: int, num_padded_tokens: int) -> None:
        """Queues the kernels that apply the plan and build its inputs from `slot`, the device's copy of it."""
        header = plan.header
        self._preparation.apply_plan(slot, int(header[NUM_ROW_INITS]), int(header[NUM_BLOCK_DELTAS]))
        self._preparation.prepare_inputs(slot, plan.num_seqs, plan.num_tokens, num_padded_seqs, num_padded_tokens)

    def pad(self, num_padded_seqs: int, num_padded_tokens: int) -> None:
        """A step of nothing but padding, for a warm-up."""
        self._preparation.prepare_inputs(self._empty_plan, 0, 0, num_padded_seqs, num_padded_tokens)

    def skip(self, skipped: np.ndarray) -> None:
        """The scheduled rows `skipped` (int64 [n]) of the step sample nothing, and the last token of each counts as not
        computed: the next step computes it again."""
        index = torch.from_numpy(skipped).to(self.step.rows.device)
        self.step.samples.index_fill_(0, index, 0)
        self.rows.num_computed_tokens.index_add_(0, self.step.rows[index], torch.full_like(self.step.rows[index], -1))

    def warm_up(self) -> None:
        """Runs what skips rows, and the kernel that applies plans, on a plan that resets row 0 and its first block."""
        self.skip(np.zeros(1, np.int64))
        self._preparation.apply_plan(self._empty_plan, 1, 1)
