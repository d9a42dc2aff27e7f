"""The events of a response that runs in this process, for any number of readers, each at its own pace.

Its size is bounded by the response: a reader that stalls holds up nobody and costs nothing more.
"""

import asyncio
from collections.abc import AsyncIterator

from frontend.errors import ApiError
from frontend.protocol.response_events import LAST_EVENTS, ResponseEvent


class ResponseLog:
    """One writer appends, and ends it in any case."""

    def __init__(self) -> None:
        self._events: list[ResponseEvent] = []
        self._ended = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def append(self, event: ResponseEvent) -> None:
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    async def read(self, start: int) -> AsyncIterator[ResponseEvent]:
        """The events from that number on, up to the end. Raises a 500 where the writer failed before it told of one."""
        position = start
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._ended:
                break
            await self._changed.wait()
        if not self._is_whole:
            raise ApiError(500, "The server failed while it answered.", code="internal_error")

    async def wait_beyond(self, count: int) -> bool:
        """Until there are more events than that, or the end; whether there are more."""
        while len(self._events) <= count and not self._ended:
            await self._changed.wait()
        return len(self._events) > count

    @property
    def _is_whole(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], LAST_EVENTS)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
