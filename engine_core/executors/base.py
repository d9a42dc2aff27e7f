"""What the engine core asks of whatever runs its steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import zmq

from engine_core.ipc.step import StepPlan, StepResult

ProgressCallback = Callable[[str, int, int, str], None]
"""Called with a stage's name, how much is done and how much there is in all, and the unit."""


class ExecutorFailed(Exception):
    """Workers could not start or died; the text is one sentence for the user."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Executor(ABC):
    """Plans go out in order, results come back in the same order."""

    @abstractmethod
    def start(self, on_progress: ProgressCallback, interrupts: Sequence[int]) -> bool:
        """Blocks until all workers are ready. False: a file descriptor among `interrupts` became readable first.

        Raises `ExecutorFailed`.
        """

    @abstractmethod
    def plan_slot(self) -> StepPlan | None:
        """Where the next plan is written; None while every slot is in use."""

    @abstractmethod
    def dispatch(self) -> None:
        """Sends the plan that `plan_slot` was given for."""

    @abstractmethod
    def next_result(self) -> StepResult | None:
        """The next step's result, valid until `release_result`; None while it is not there. Never blocks."""

    @abstractmethod
    def release_result(self) -> None:
        """The result that `next_result` gave is not needed any more."""

    @abstractmethod
    def register(self, poller: zmq.Poller) -> None:
        """Adds what becomes readable when a result may be there or a worker died."""

    @abstractmethod
    def check(self) -> None:
        """Reads doorbells; raises `ExecutorFailed` when a worker is gone."""

    @abstractmethod
    def shutdown(self) -> None:
        """Ends all workers and waits for them. May be called at any time, also twice."""
