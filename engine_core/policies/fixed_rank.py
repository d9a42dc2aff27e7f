"""Policies under which a request's rank is known when it arrives: one heap, one array."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator

import numpy as np

from engine_core.policies.base import SchedulingPolicy
from engine_core.request import Request
from engine_core.waiting_queue import WaitingQueue


class FixedRankPolicy(SchedulingPolicy):
    """A policy that is stated by one number."""

    def __init__(self, num_rows: int) -> None:
        self._queue = WaitingQueue()
        self._num_waiting_of: Counter[str | None] = Counter()
        """By share; those that have none are gone."""
        self._rank_of_row = np.zeros(num_rows)

    @abstractmethod
    def rank(self, request: Request) -> float:
        """Lower comes first."""

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def num_waiting_of(self, share_key: str) -> int:
        return self._num_waiting_of[share_key]

    def waiting(self) -> Iterator[Request]:
        return iter(self._queue)

    def push(self, request: Request) -> None:
        self._queue.push((self.rank(request), request.arrival_number), request)
        self._num_waiting_of[request.share_key] += 1

    def peek(self) -> Request | None:
        return self._queue.peek()

    def pop(self) -> Request:
        request = self._queue.pop()
        self._left_queue(request)
        return request

    def start(self, request: Request, num_charged_tokens: int) -> None:
        self._rank_of_row[request.row] = self.rank(request)

    def ranks(self, rows: np.ndarray) -> np.ndarray:
        return self._rank_of_row[rows]

    def count_sampled(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Changes no rank."""

    def end(self, request: Request, was_waiting: bool) -> None:
        if was_waiting:
            self._queue.forget()
            self._left_queue(request)

    def _left_queue(self, request: Request) -> None:
        self._num_waiting_of[request.share_key] -= 1
        if not self._num_waiting_of[request.share_key]:
            del self._num_waiting_of[request.share_key]


class FirstComeFirstServed(FixedRankPolicy):
    """By arrival alone. Nobody starves: a request is overtaken by no later one."""

    def rank(self, request: Request) -> float:
        return 0.0


class PriorityWithAgeing(FixedRankPolicy):
    """By priority, which improves by `ageing_rate` levels for each second of waiting.

    All age alike, so the order of two requests never changes and the time of arrival stands for the time waited:

        rank = priority + ageing_rate x arrival_time

    Nobody starves: a request that comes more than (difference of priorities / ageing_rate) seconds later comes after.
    At rate 0 priorities are strict, and a stream of better ones keeps the others waiting for ever.
    """

    def __init__(self, num_rows: int, ageing_rate: float) -> None:
        super().__init__(num_rows)
        self._ageing_rate = ageing_rate

    def rank(self, request: Request) -> float:
        return request.priority + self._ageing_rate * request.arrival_time
