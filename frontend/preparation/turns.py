"""Who comes next where few can be served at once: clients take turns, and none has all the places.

So a client with a hundred requests delays another one by no more than those of its requests that run.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_WAITING = 512


class TooManyWaiting(Exception):
    """A client has more requests waiting than it leaves room for others."""


class Turns:
    """`num_places` at once, of which one client has all but one at most."""

    def __init__(self, num_places: int, max_waiting: int = MAX_WAITING) -> None:
        assert num_places >= 2
        self._num_places = num_places
        self._max_waiting = max_waiting
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By client; the one whose turn it is stands first."""

    @property
    def num_running(self) -> int:
        return self._running.total()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """A place, once it is there. Raises `TooManyWaiting`."""
        await self._take(client)
        try:
            yield
        finally:
            self._leave(client)

    async def _take(self, client: str) -> None:
        if client not in self._waiting and self._has_place(client):
            self._running[client] += 1
            return
        own = len(self._waiting.get(client, ()))
        if own >= self._max_waiting - self.num_waiting:
            raise TooManyWaiting
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave(client)  # it was given the place in the moment when it gave up
            else:
                self._forget(client, place)
            raise

    def _has_place(self, client: str) -> bool:
        return self.num_running < self._num_places and self._running[client] < self._num_places - 1

    def _leave(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._call_next()

    def _call_next(self) -> None:
        for client, places in list(self._waiting.items()):
            if not self._has_place(client):
                continue
            place = places.popleft()
            self._drop_if_empty(client)
            if place.cancelled():
                return self._call_next()
            self._running[client] += 1
            place.set_result(None)
            if client in self._waiting:
                self._waiting.move_to_end(client)
            return None

    def _forget(self, client: str, place: "asyncio.Future[None]") -> None:
        if place in self._waiting.get(client, ()):
            self._waiting[client].remove(place)
            self._drop_if_empty(client)

    def _drop_if_empty(self, client: str) -> None:
        if not self._waiting[client]:
            del self._waiting[client]
