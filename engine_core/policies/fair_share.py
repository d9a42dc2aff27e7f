"""Fair share by client: whoever has had the least service comes first.

Each share (the requests that carry one `share_key`) has a counter of the tokens it was served, prompt tokens that had
to be computed once and output tokens twice, since they cost more (the virtual token counters of "Fairness in Serving
Large Language Models", OSDI 2024). A share that returns after a pause must not cash in on it: its counter is raised to
the virtual time, which is what a share would have that was served its part all along:

    virtual_time += tokens served / number of shares with requests

That time goes on with every token, so a share with a high counter does not starve behind ever new keys: sooner or later
they begin above it.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from engine_core.policies.base import SchedulingPolicy
from engine_core.request import Request
from engine_core.waiting_queue import WaitingQueue

OUTPUT_WEIGHT = 2.0
"""Of an output token, where a prompt token has 1."""
_FIRST_CAPACITY = 1024
_MAX_IDLE_SHARES = 65536
"""Beyond it shares without requests are forgotten even where they had more than their part, the least debts first."""
_NOTHING_WAITS = np.iinfo(np.int64).max


class FairShare(SchedulingPolicy):
    """Shares are numbered; a number is given on when its share has no requests and nothing worth remembering."""

    def __init__(self, num_rows: int) -> None:
        self._share_of_row = np.zeros(num_rows, np.int64)
        self._number_of: dict[str | None, int] = {}
        self._key_of: dict[int, str | None] = {}
        self._queues: list[WaitingQueue] = []
        # By number of share. An unused number has counter -inf.
        self._counters = np.empty(0)
        self._num_unfinished = np.empty(0, np.int64)
        self._first_arrival = np.empty(0, np.int64)  # arrival number of the first request waiting, or _NOTHING_WAITS
        self._num_active = 0
        self._num_waiting = 0
        self._virtual_time = 0.0
        self._next = -1
        """The share whose first request `peek` showed."""
        self._grow(_FIRST_CAPACITY)

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    def waiting(self) -> Iterator[Request]:
        return chain.from_iterable(self._queues)

    def push(self, request: Request) -> None:
        if request.share < 0:
            request.share = self._number(request.share_key)
            self._enter(request.share)
        share = request.share
        self._queues[share].push((0.0, request.arrival_number), request)
        self._first_arrival[share] = min(self._first_arrival[share], request.arrival_number)
        self._num_waiting += 1

    def peek(self) -> Request | None:
        if self._num_waiting == 0:
            return None
        counters = np.where(self._first_arrival < _NOTHING_WAITS, self._counters, np.inf)
        least = np.flatnonzero(counters == counters.min())
        self._next = int(least[self._first_arrival[least].argmin()])
        return self._queues[self._next].peek()

    def pop(self) -> Request:
        request = self._queues[self._next].pop()
        self._left_queue(self._next)
        return request

    def start(self, request: Request, num_charged_tokens: int) -> None:
        self._share_of_row[request.row] = request.share
        self._counters[request.share] += num_charged_tokens
        self._virtual_time += num_charged_tokens / self._num_active

    def ranks(self, rows: np.ndarray) -> np.ndarray:
        return self._counters[self._share_of_row[rows]]

    def count_sampled(self, rows: np.ndarray, counts: np.ndarray) -> None:
        if len(rows) == 0:
            return
        self._counters += OUTPUT_WEIGHT * np.bincount(self._share_of_row[rows], counts, len(self._counters))
        self._virtual_time += OUTPUT_WEIGHT * int(counts.sum()) / self._num_active

    def end(self, request: Request, was_waiting: bool) -> None:
        share = request.share
        if was_waiting:
            self._queues[share].forget()
            self._left_queue(share)
        self._num_unfinished[share] -= 1
        if self._num_unfinished[share] == 0:
            self._num_active -= 1

    def num_waiting_of(self, share_key: str) -> int:
        number = self._number_of.get(share_key)
        return 0 if number is None else len(self._queues[number])

    def _enter(self, share: int) -> None:
        """A new request: a share that had nothing waiting keeps no advantage over those that had."""
        if self._first_arrival[share] == _NOTHING_WAITS:
            self._counters[share] = max(self._counters[share], self._virtual_time)
        if self._num_unfinished[share] == 0:
            self._num_active += 1
        self._num_unfinished[share] += 1

    def _left_queue(self, share: int) -> None:
        self._num_waiting -= 1
        first = self._queues[share].peek()
        self._first_arrival[share] = _NOTHING_WAITS if first is None else first.arrival_number

    def _number(self, key: str | None) -> int:
        """The share's number, a new one where the key is not known (any more)."""
        number = self._number_of.get(key)
        if number is None:
            number = self._free_number()
            if number in self._key_of:
                del self._number_of[self._key_of[number]]
            self._number_of[key], self._key_of[number] = number, key
            self._counters[number] = self._virtual_time
        return number

    def _free_number(self) -> int:
        """That of an idle share at or below the virtual time: it would be raised to it anyway."""
        counters = np.where(self._num_unfinished == 0, self._counters, np.inf)
        number = int(counters.argmin())
        capacity = len(counters)
        if counters[number] > self._virtual_time and (capacity < _MAX_IDLE_SHARES or counters[number] == np.inf):
            self._grow(capacity)
            return capacity
        return number

    def _grow(self, count: int) -> None:
        self._queues += [WaitingQueue() for _ in range(count)]
        self._counters = np.concatenate([self._counters, np.full(count, -np.inf)])
        self._num_unfinished = np.concatenate([self._num_unfinished, np.zeros(count, np.int64)])
        self._first_arrival = np.concatenate([self._first_arrival, np.full(count, _NOTHING_WAITS)])
