"""Requests that have no row, the lowest key first."""

import heapq
from collections.abc import Iterator

from engine_core.request import Request, RequestStatus

Key = tuple[float, int]
"""Rank, then arrival number: no two requests have the same."""


class WaitingQueue:
    """A heap whose entries for requests that ended meanwhile are dropped when they reach the top or are too many."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, Request]] = []
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return (request for _, request in self._heap if request.status is RequestStatus.WAITING)

    def push(self, key: Key, request: Request) -> None:
        heapq.heappush(self._heap, (key, request))
        self._num_requests += 1

    def peek(self) -> Request | None:
        """The first request."""
        while self._heap and self._heap[0][1].status is not RequestStatus.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Takes the request that `peek` showed."""
        self._num_requests -= 1
        return heapq.heappop(self._heap)[1]

    def forget(self) -> None:
        """One of the requests has just ended; its status says which."""
        self._num_requests -= 1
        if len(self._heap) > 2 * self._num_requests + 64:
            self._heap = [entry for entry in self._heap if entry[1].status is RequestStatus.WAITING]
            heapq.heapify(self._heap)
