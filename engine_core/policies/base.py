"""What a scheduling policy decides: who is admitted next, whose prompt goes on first, who is preempted.

All three follow one order: lowest rank first, then earliest arrival. A policy keeps the waiting requests in that order
and tells the ranks of running rows at any moment; how tokens, blocks and steps are dealt out is the scheduler's.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from engine_core.request import Request


class SchedulingPolicy(ABC):
    """Told of every event in a request's life; no call may cost more than O(log n) or one pass in numpy."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Requests in the queue."""

    @abstractmethod
    def waiting(self) -> Iterator[Request]:
        """They, in no particular order."""

    @abstractmethod
    def push(self, request: Request) -> None:
        """A request joins the queue: a new one, or one that was preempted."""

    @abstractmethod
    def peek(self) -> Request | None:
        """The waiting request that comes next."""

    @abstractmethod
    def pop(self) -> Request:
        """Takes the request that `peek` showed from the queue."""

    @abstractmethod
    def start(self, request: Request, num_charged_tokens: int) -> None:
        """It has a row now; its prompt costs that many tokens: none that the cache had, none a second time."""

    @abstractmethod
    def ranks(self, rows: np.ndarray) -> np.ndarray:
        """The present ranks of running rows, float64 [num_rows]."""

    @abstractmethod
    def count_sampled(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Each of these rows has got `counts` more tokens."""

    @abstractmethod
    def end(self, request: Request, was_waiting: bool) -> None:
        """The request has ended; its status says so already."""

    @abstractmethod
    def num_waiting_of(self, share_key: str) -> int:
        """Requests of that share in the queue."""

    def is_full(self, share_key: str | None, max_num_waiting: int, num_new: int = 1) -> bool:
        """Whether `num_new` more requests of this share would be too many in the queue.

        No share may hold more of the queue than it leaves free, so that one that floods it shuts nobody out. Requests
        without a key are not told apart; they may fill it.
        """
        num_before = num_new - 1  # as the last of them finds it
        num_free = max_num_waiting - self.num_waiting - num_before
        return num_free <= (0 if share_key is None else self.num_waiting_of(share_key) + num_before)
