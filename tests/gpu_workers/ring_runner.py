"""A `CudaRunner` behind the interface of the CPU's: one whole step at a time, through real rings.

Without a GPU its kernels run through Triton's interpreter on CPU tensors, and `InlineQueue` takes the place of streams:
everything but graphs, streams and events is the code that a GPU runs.
"""

import mmap
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec
import torch

from tests.kernels.device import DEVICE  # isort: skip  # before any kernel is imported

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import LateMasks, StepPlan, StepResult, StepShape, late_layout, plan_layout, result_layout
from gpu_workers.cuda.device_queue import DeviceQueue
from gpu_workers.cuda.runner import CudaRunner
from gpu_workers.model_runner import Masks

_TIMEOUT_SECONDS = 120.0


class InlineQueue(DeviceQueue):
    """Everything happens at once, in the memory of the rings themselves."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def enter(self) -> None:
        pass

    def open(
        self,
        plans: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        rings: Sequence[mmap.mmap],
        bulk_word: int,
    ) -> None:
        self._plans, self._results, self._rings, self._bulk_word = plans, results, rings, bulk_word
        self.device_results = [torch.zeros_like(result) for result in results]

    def pin(self, memory: mmap.mmap) -> None:
        pass

    def unpin(self, memory: mmap.mmap) -> None:
        pass

    def storing(self) -> AbstractContextManager[None]:
        return nullcontext()

    loading = storing

    def synchronize(self) -> None:
        pass

    def free_bytes(self) -> int:
        return 0

    def begin(self, slot: int, num_bulk_words: int) -> torch.Tensor:
        staged = torch.full_like(self._plans[slot], -(2**30))  # what is not copied must not be read
        num_words = self._bulk_word + num_bulk_words
        staged[:num_words] = self._plans[slot][:num_words]
        return staged

    def open_masks(self, masks: Sequence[torch.Tensor], mask_rows: Sequence[torch.Tensor]) -> None:
        self._masks, self._mask_rows = masks, mask_rows

    def mark_forward(self, slot: int) -> None:
        self.ended_ns = 0

    def forward_ended(self, slot: int) -> tuple[int, int] | None:
        """It runs until somebody has slept beside it."""
        return (self.ended_ns, 0) if self.ended_ns else None

    def masks(self, slot: int, num_masks: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mask_rows[slot][:num_masks], self._masks[slot][:num_masks]

    def end(self, slot: int, words: slice) -> None:
        self._results[slot][words] = self.device_results[slot][words]

    def wait(self, slot: int) -> tuple[int, int]:
        return 1, 2


class RingRunner:
    """Starts a runner for `config` (on the CPU always without graphs) and runs single steps on it."""

    def __init__(self, config: EngineConfig) -> None:
        self._queue: InlineQueue | None = None
        if DEVICE == "cpu":
            self._queue, config = InlineQueue(), msgspec.structs.replace(config, enforce_eager=True)
        self.runner = CudaRunner(config, queue=self._queue)
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
        masks, skipped = self._masks(lambda: (0, 0))
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
        self.runner.step(self._sequence)
        assert self._is_finished.wait(_TIMEOUT_SECONDS), "the step does not end"
        assert self._finished[-1] == self._sequence
        for name in StepResult.__slots__:
            getattr(result, name)[...] = getattr(self._results[slot], name)

    def close(self) -> None:
        self.runner.close()
