"""A runner, one whole step at a time, through real rings.

Without a GPU the kernels of the device "cuda" run through Triton's interpreter on CPU tensors. `PoisonedQueue` stands
for streams: everything but graphs, streams and events is the code that a GPU runs.
"""

import mmap
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE  # isort: skip  # before any kernel is imported

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import LateMasks, StepPlan, StepResult, StepShape, late_layout, plan_layout, result_layout
from gpu_workers.running.inline_queue import InlineQueue
from gpu_workers.running.runner import Runner

_TIMEOUT_SECONDS = 120.0
ON_BOTH_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.slow)]
"""For whole models; "cuda" is slow in Triton's interpreter."""


Masks = Callable[[], tuple[np.ndarray, np.ndarray]]
"""A step's masks: int32 [num_masks or more, W], and which scheduled rows' masks are late, int64 [n]."""


class PoisonedQueue(InlineQueue):
    """An inline queue for the code of a GPU: plans and results are copies, and a thread waits for steps."""

    runs_inline = False

    def open(
        self,
        plans: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        rings: Sequence[mmap.mmap],
        bulk_word: int,
    ) -> None:
        super().open(plans, results, rings, bulk_word)
        self._results, self._bulk_word = results, bulk_word
        self.device_results = [torch.zeros_like(result) for result in results]

    def begin(self, slot: int, num_bulk_words: int) -> torch.Tensor:
        plan = super().begin(slot, num_bulk_words)
        staged = torch.full_like(plan, -(2**30))  # what is not copied must not be read
        num_words = self._bulk_word + num_bulk_words
        staged[:num_words] = plan[:num_words]
        return staged

    def mark_forward(self, slot: int) -> None:
        self.ended_ns = 0

    def forward_ended(self, slot: int) -> tuple[int, int] | None:
        """It runs until somebody has slept beside it."""
        return (self.ended_ns, 0) if self.ended_ns else None

    def end(self, slot: int, words: slice) -> None:
        super().end(slot, words)
        self._results[slot][words] = self.device_results[slot][words]


class RingRunner:
    """Starts a runner for `config` (without a GPU always without graphs) and runs single steps on it."""

    def __init__(self, config: EngineConfig) -> None:
        self._queue: PoisonedQueue | None = None
        if config.device == "cuda" and DEVICE == "cpu":
            self._queue, config = PoisonedQueue(), msgspec.structs.replace(config, enforce_eager=True)
        self.runner = Runner(config, config.places()[0], self._queue)
        self.runner.load(lambda done, total: None)
        self.runner.start(lambda done, total: None)
        shape = StepShape(**config.step_capacities())
        plans, results = plan_layout(shape), result_layout(shape)
        late = late_layout(shape)
        self._plan_ring = Ring.create("plans", plans.num_bytes, 4, 1, late.num_bytes)
        self._late = [LateMasks.over(late, slot) for slot in self._plan_ring.late_slots]
        self._masks: Masks | None = None
        self._result_ring = Ring.create("results", results.num_bytes, 4)
        self._plans = [StepPlan.over(plans, slot) for slot in self._plan_ring.slots]
        self._results = [StepResult.over(results, slot) for slot in self._result_ring.slots]
        self._sequence = 0
        self._finished: list[int] = []
        self._is_finished = threading.Event()
        self.runner.open(self._plan_ring, self._result_ring, self._on_finished, self._bring_masks)

    def _on_finished(self, sequence: int) -> None:
        self._finished.append(sequence)
        self._is_finished.set()

    def _bring_masks(self, timeout_ms: int) -> None:
        """While the step is under way; only who waits for a late part has it made, once."""
        assert timeout_ms > 0
        if self._queue is not None and not self._queue.ended_ns:
            self._queue.ended_ns = time.monotonic_ns()
        if self._masks is None:
            return
        slot = self._plan_ring.slot_of(self._sequence)
        plan, late = self._plans[slot], self._late[slot]
        masks, skipped = self._masks()
        self._masks = None
        late.masks[: plan.num_masks] = masks[: plan.num_masks]
        for mask, index in enumerate(plan.mask_rows[: plan.num_masks].tolist()):
            if index not in skipped:
                late.sequences[mask] = self._sequence
        if len(skipped) == 0:
            self._plan_ring.publish_late(self._sequence)

    def execute(self, plan: StepPlan, result: StepResult, masks: Masks | None = None) -> None:
        """Copies the plan into the ring, runs it, waits, and copies the result out."""
        self._masks = masks
        self._sequence += 1
        slot = self._plan_ring.slot_of(self._sequence)
        for name in StepPlan.__slots__:
            getattr(self._plans[slot], name)[...] = getattr(plan, name)
        self._is_finished.clear()
        if self._queue is None:  # the forward pass of a small model ends too soon to wait for masks made beside it
            self._bring_masks(1)
        self.runner.step(self._sequence)
        assert self._is_finished.wait(_TIMEOUT_SECONDS), "the step does not end"
        assert self._finished[-1] == self._sequence
        for name in StepResult.__slots__:
            getattr(result, name)[...] = getattr(self._results[slot], name)

    def close(self) -> None:
        self.runner.close()
