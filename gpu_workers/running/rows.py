"""The rows on the device and the step's inputs there; what of them the host has to know stays on the host as well.

The host never reads the device's copy. Of each row it remembers which of the sampler's operations it needs, because
which kernels a step launches is decided before the step's results are known.
"""

import numpy as np
import torch

from engine_core.ipc.row_fields import NUM_ROW_FIELDS, ROW_FIELD_INDEX, needs_of
from engine_core.ipc.step import (
    NUM_BLOCK_DELTAS,
    NUM_ROW_INITS,
    NUM_SHARED_KEYS,
    NUM_SHARING_SEQS,
    StepPlan,
    StepShape,
    plan_layout,
)
from engine_core.ipc.worker_tensors import input_layout, penalty_layout, row_layout
from gpu_workers.operations import Operations, make_tensors
from kernels.step_tensors import PlanPlaces, RowTensors, StepTensors


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
        self._needs = np.zeros(shape.max_num_seqs, np.int32)
        self.scored_places = ScoredPlaces(shape)
        self._empty_plan = torch.zeros(plan_layout(shape).num_bytes // 4, dtype=torch.int32, device=device)
        penalties = penalty_layout(num_penalty_slots, vocab_size)
        self.rows = RowTensors(**make_tensors(row_layout(shape), device), **make_tensors(penalties, device))
        self.step = StepTensors(**make_tensors(input_layout(shape), device))
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
