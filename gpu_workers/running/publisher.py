"""Everything that has to happen on the CPU once a step's result is there: its header, and that the step is finished.

Where steps are queued, a thread waits for them with the interpreter's lock released, because the thread that launches
steps never waits for one. Where a step has ended when it was launched, there is no thread.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine_core.ipc.step import ENDED_NS, NUM_HOST_SLOTS, RESULT_NUM_SEQS, RESULT_STEP_ID, STARTED_NS, StepResult


class WaitsForSteps(Protocol):
    runs_inline: bool

    def wait(self, slot: int) -> tuple[int, int]: ...


class LaunchedStep(NamedTuple):
    """A step under way."""

    sequence: int
    slot: int
    step_id: int
    num_seqs: int
    num_host_slots: int


class Publisher:
    """`put` steps in the order of their launch; `finished(sequence)` is called for each, in that order."""

    def __init__(self, device: WaitsForSteps, results: list[StepResult], finished: Callable[[int], None]) -> None:
        self._device = device
        self._results = results
        self._finished = finished
        self._queue: queue.SimpleQueue[LaunchedStep | None] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self.failure_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable once the thread has failed; the reason is `failure`."""
        self._thread: threading.Thread | None = None
        if not device.runs_inline:
            self._thread = threading.Thread(target=self._run, name="quire-publisher", daemon=True)
            self._thread.start()

    def put(self, step: LaunchedStep) -> None:
        if self._thread is None:
            self._publish(step)
        else:
            self._queue.put(step)

    def close(self) -> None:
        """Waits for the steps that were put, then ends the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        os.close(self.failure_fd)

    def _run(self) -> None:
        try:
            while (step := self._queue.get()) is not None:
                self._publish(step)
        except Exception as error:  # noqa: BLE001 - a thread's entry: the launching thread raises it again
            self.failure = error
            os.eventfd_write(self.failure_fd, 1)

    def _publish(self, step: LaunchedStep) -> None:
        started_ns, ended_ns = self._device.wait(step.slot)
        header = self._results[step.slot].header
        header[RESULT_STEP_ID] = step.step_id
        header[RESULT_NUM_SEQS] = step.num_seqs
        header[STARTED_NS] = started_ns
        header[ENDED_NS] = ended_ns
        header[NUM_HOST_SLOTS] = step.num_host_slots
        self._finished(step.sequence)
