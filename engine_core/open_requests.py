"""All requests that have no final reply yet: by id, and those with a deadline by that."""

import heapq
from collections import Counter

from engine_core.request import Request, RequestStatus


class OpenRequests:
    """Knows no clocks: times are unix seconds that the caller gives."""

    def __init__(self) -> None:
        self._by_id: dict[str, dict[int, Request]] = {}
        """Of each id, the samples by handle."""
        self._num_requests = 0
        self._deadlines: list[tuple[float, int, Request]] = []  # by time, then arrival
        self._num_of_share: Counter[str | None] = Counter()

    def get(self, request_id: str) -> Request | None:
        """The first open one of that id's samples."""
        return next(iter(self._by_id.get(request_id, {}).values()), None)

    def all(self) -> list[Request]:
        """In order of arrival."""
        return [request for samples in self._by_id.values() for request in samples.values()]

    def num_of_share(self, share_key: str | None) -> int:
        """Those that carry that key, waiting and running."""
        return self._num_of_share[share_key]

    def add(self, request: Request) -> None:
        self._by_id.setdefault(request.request_id, {})[request.handle] = request
        self._num_requests += 1
        self._num_of_share[request.share_key] += 1
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.arrival_number, request))

    def remove(self, request: Request) -> None:
        """It ended."""
        samples = self._by_id[request.request_id]
        del samples[request.handle]
        if not samples:
            del self._by_id[request.request_id]
        self._num_requests -= 1
        self._num_of_share[request.share_key] -= 1
        if not self._num_of_share[request.share_key]:
            del self._num_of_share[request.share_key]

    def expired(self, now: float) -> list[Request]:
        """Those whose deadline has passed, each told once; forgets the deadlines of those that ended before theirs."""
        if len(self._deadlines) > 2 * self._num_requests + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].status is not RequestStatus.FINISHED]
            heapq.heapify(self._deadlines)
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if request.status is not RequestStatus.FINISHED:
                expired.append(request)
        return expired
