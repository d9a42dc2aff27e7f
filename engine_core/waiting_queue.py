"""The requests that have no row, by priority, then arrival: a preempted one stands before later arrivals."""

import heapq
from collections.abc import Iterator

from engine_core.request import Request, RequestStatus


class WaitingQueue:
    """A heap whose entries for requests that ended meanwhile are skipped when they reach the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._heap if request.status is RequestStatus.WAITING)

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.order, request))
        self._num_requests += 1

    def peek(self) -> Request | None:
        """The next request in order."""
        while self._heap and self._heap[0][1].status is not RequestStatus.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Takes the request that `peek` showed."""
        self._num_requests -= 1
        return heapq.heappop(self._heap)[1]

    def forget(self) -> None:
        """One of the waiting requests has just ended."""
        self._num_requests -= 1
