"""Server-sent events over one Sanic response: one write per event, pings in times of silence, stalled readers cut."""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

PING_SECONDS = 15.0
STALLED_READER_SECONDS = 120.0
"""A reader that takes nothing for so long is gone, whatever its connection says."""

logger = logging.getLogger(__name__)

_DATA = b"data: "
_END = b"\n\n"
_encode = msgspec.json.Encoder().encode


class KeepAlive:
    """Looks after all open event streams of a process with one timer."""

    def __init__(self) -> None:
        self._streams: set[EventStream] = set()

    def add(self, stream: "EventStream") -> None:
        self._streams.add(stream)

    def discard(self, stream: "EventStream") -> None:
        self._streams.discard(stream)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PING_SECONDS / 5)
            await self.look_after_all(time.monotonic())

    async def look_after_all(self, now: float) -> None:
        """One round. A stream that cannot be looked after is given up; the others still are."""
        for stream in list(self._streams):
            try:
                await stream.look_after(now)
            except Exception:  # its connection may fail in any way, and its own handler hears of it
                logger.exception("An event stream could not be kept alive.")
                self.discard(stream)


class EventStream:
    """An answer as a stream of events. The headers go out with the first of them, or by `begin`."""

    def __init__(self, request: Request, response: HTTPResponse, keep_alive: KeepAlive) -> None:
        self._request = request
        self._response = response
        self._keep_alive = keep_alive
        self._last_write = time.monotonic()

    @classmethod
    async def open(cls, request: Request, keep_alive: KeepAlive, headers: dict[str, str]) -> "EventStream":
        response = await request.respond(
            content_type="text/event-stream; charset=utf-8",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers},
        )
        assert response is not None
        stream = cls(request, response, keep_alive)
        keep_alive.add(stream)
        return stream

    async def begin(self) -> None:
        """Sends the headers now: the first event may be long in coming."""
        await self._write(b"")

    async def send(self, event: msgspec.Struct | dict[str, Any]) -> None:
        """Waits while the reader is slower than its connection's buffers."""
        await self._write(b"".join((_DATA, _encode(event), _END)))

    async def send_named(self, events: Iterable[msgspec.Struct]) -> None:
        """Events whose structs' tags are their names, one write each."""
        for event in events:
            name = str(event.__struct_config__.tag).encode()
            await self._write(b"".join((b"event: ", name, b"\n", _DATA, _encode(event), _END)))

    async def done(self) -> None:
        """The last event of a stream of chunks."""
        await self._write(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """Nothing more is sent."""
        await self._response.eof()

    def close(self) -> None:
        self._keep_alive.discard(self)

    def is_held_up(self) -> bool:
        """Whether the client has not read all that was sent."""
        transport: Any = self._request.transport
        return transport is not None and transport.get_write_buffer_size() > 0

    async def look_after(self, now: float) -> None:
        """Sends a comment into a silence, and cuts a reader that has not read for long. Never waits for the reader."""
        transport: Any = self._request.transport
        if transport is None or transport.is_closing():
            return
        silence = now - self._last_write
        if transport.get_write_buffer_size() > 0:
            if silence > STALLED_READER_SECONDS:
                transport.abort()
        elif silence >= PING_SECONDS:
            await self.ping()

    async def ping(self) -> None:
        """A comment, which clients ignore and proxies take as a sign of life."""
        await self._write(b": ping\n\n")

    async def _write(self, data: bytes) -> None:
        await self._response.send(data)
        self._last_write = time.monotonic()
