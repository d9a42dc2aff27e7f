"""The thread that waits for steps to end: everything that has to happen on the CPU once a result is there.

It waits with the interpreter's lock released, writes the result's header, and says that the step is finished; the
thread that launches steps never waits for one.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine_core.ipc.step import ENDED_NS, NUM_HOST_SLOTS, RESULT_NUM_SEQS, RESULT_STEP_ID, STARTED_NS, StepResult


class WaitsForSteps(Protocol):
    def wait(self, slot: int) -> tuple[int, int]: ...


class LaunchedStep(NamedTuple):
    """A step under way."""

    sequence: int
    slot: int
    step_id: int
    num_seqs: int
    num_host_slots: int = 0


class Publisher:
    """`put` steps in the order of their launch; `finished(sequence)` is called for each in that order, from here."""

    def __init__(self, device: WaitsForSteps, results: list[StepResult], finished: Callable[[int], None]) -> None:
        self._device = device
        self._results = results
        self._finished = finished
        self._queue: queue.SimpleQueue[LaunchedStep | None] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self.failure_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable once the thread has failed; the reason is `failure`."""
        self._thread = threading.Thread(target=self._run, name="quire-publisher", daemon=True)
        self._thread.start()

    def put(self, step: LaunchedStep) -> None:
        self._queue.put(step)

    def close(self) -> None:
        """Waits for the steps that were put, then ends the thread."""
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
