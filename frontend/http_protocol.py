"""Sanic's HTTP connection, with what a server needs that anybody can reach.

- The head of a request and the sizes of its chunks are checked before Sanic parses them, which is too lenient.
- Head and body have absolute deadlines. Sanic's own timeout starts again with every byte, so that a client that sends
  one byte a minute keeps its connection.
- Whoever is refused while it still sends gets its answer: a connection that is closed with bytes unread is reset, and
  with it goes the answer.
"""

import asyncio
import time
from typing import Any

from sanic.exceptions import BadRequest, RequestTimeout
from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE
from sanic.server.protocols.http_protocol import HttpProtocol

from frontend.http_head import MalformedRequest, check_chunk_size, check_head, check_line_breaks

HEAD_SECONDS = 20.0
BODY_SECONDS = 120.0
KEEP_ALIVE_SECONDS = 120.0
CHECK_SECONDS = 5.0
LINGER_SECONDS = 10.0
"""How long a client that was refused may go on sending before its connection is closed."""
MAX_UNREAD_BYTES = 256 * 2**20
"""Of answers that clients leave unread, in all connections of a process together."""
_LARGE_WRITE_BYTES = 64 * 2**10
"""Smaller writes wait for the client once so much is unread."""
_END_OF_HEAD = b"\r\n\r\n"
_MAX_CHUNK_LINE_BYTES = 256


class StrictHttp(Http):
    """The requests of one connection."""

    __slots__ = ()
    protocol: "DeadlineHttpProtocol"
    recv_buffer: bytearray
    request_bytes: int
    request_body: Any
    """True or "chunked" while the body comes."""

    async def http1(self) -> None:
        try:
            await super().http1()
        finally:
            # A method of its own: after half an answer, a cycle.
            self.response_func = None  # type: ignore[assignment]
        if self.recv_buffer or self.request_body:
            await self.protocol.read_on()

    async def http1_request_header(self) -> None:
        buffer = self.recv_buffer
        try:
            while (end := buffer.find(_END_OF_HEAD)) < 0 and len(buffer) < self.HEADER_MAX_SIZE:
                check_line_breaks(buffer, is_whole=False)
                await self._receive_more()
            if end >= 0:
                check_head(bytes(buffer[:end]))
        except MalformedRequest as error:
            raise BadRequest(str(error)) from error
        await super().http1_request_header()

    async def error_response(self, exception: Exception) -> None:
        try:
            await super().error_response(exception)
        finally:
            # Sanic's frame has the exception, and its traceback the frame: a cycle for each client that hangs up.
            exception.__traceback__ = None

    async def read(self) -> bytes | None:
        if self.request_bytes > self.request_max_size:
            self.expecting_continue = False  # who asks before it sends need not send
        elif self.request_body == "chunked" and self.request_bytes_left == 0:
            await self._check_chunk()
        return await super().read()

    async def _check_chunk(self) -> None:
        """Waits for the line of the next chunk's size, and for the end of the chunk before it."""
        if self.expecting_continue:
            self.expecting_continue = False
            await self._send(HTTP_CONTINUE)
        buffer = self.recv_buffer
        try:
            while (end := buffer.find(b"\r\n", 2)) < 0 and len(buffer) <= _MAX_CHUNK_LINE_BYTES:
                check_line_breaks(buffer, is_whole=False)
                await self._receive_more()
            if not 0 <= end <= _MAX_CHUNK_LINE_BYTES:
                raise MalformedRequest(f"A chunk's size must take at most {_MAX_CHUNK_LINE_BYTES} bytes.")
            if not buffer.startswith(b"\r\n"):
                raise MalformedRequest("A chunk must end with CR and LF where its size says so.")
            check_chunk_size(bytes(buffer[2:end]))
        except MalformedRequest as error:
            self.keep_alive = False
            raise BadRequest(str(error)) from error


class DeadlineHttpProtocol(HttpProtocol):
    """One connection."""

    HTTP_CLASS = StrictHttp
    __slots__ = ("_discards", "_num_received", "_request_began")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._request_began = time.monotonic()
        self._discards = False
        self._num_received = 0

    def data_received(self, data: bytes) -> None:
        self._num_received += len(data)
        if self._discards:
            return
        if not self._is_in_request:
            self._request_began = time.monotonic()
        super().data_received(data)

    async def send(self, data: bytes) -> None:
        await super().send(data)
        if len(data) > _LARGE_WRITE_BYTES:
            self._bound_unread()

    def _bound_unread(self) -> None:
        """Where too much is unread, cuts who has been sent nothing for longest: it reads nothing."""
        connections = [connection for connection in self.connections if connection.has_unread_answer]
        excess = sum(connection.num_unread for connection in connections) - MAX_UNREAD_BYTES
        for connection in sorted(connections, key=lambda connection: connection._time):
            if excess > 0:
                excess -= connection.num_unread
                connection.cut()

    async def read_on(self) -> None:
        """Takes what a refused client still sends, and drops it, until the client closes the connection or is late."""
        if self.transport is None or self.transport.is_closing():
            return
        self._discards = True
        self.recv_buffer.clear()
        self.transport.resume_reading()
        self.transport.write_eof()  # who reads to the end of the answer need not wait either
        await asyncio.sleep(LINGER_SECONDS)  # the end of the connection cancels it

    def check_timeouts(self) -> None:
        """Calls itself every few seconds as long as the connection lives."""
        if not self._task or self.http is None:
            return
        stage = self._http.stage
        now = time.monotonic()
        age = now - self._request_began
        if stage is Stage.IDLE and now - self._time > KEEP_ALIVE_SECONDS:
            self._task.cancel()
        elif stage is Stage.REQUEST and age > HEAD_SECONDS:
            self._refuse(f"The request's head did not arrive within {HEAD_SECONDS:g} seconds.")
        elif stage is Stage.HANDLER and self._http.request_body and age > BODY_SECONDS:
            self._refuse(f"The request's body did not arrive within {BODY_SECONDS:g} seconds.")
        elif stage is Stage.IDLE and age > BODY_SECONDS and self._http.request_body:
            self.cut()  # it has its answer, and sends the rest of its body ever so slowly
        else:
            self._callback_check_timeouts = self.loop.call_later(CHECK_SECONDS, self.check_timeouts)

    def _refuse(self, message: str) -> None:
        assert self._http is not None
        assert self._task is not None
        self._http.exception = RequestTimeout(message)
        self._task.cancel()
        # After its answer Sanic reads on to the end of the body, which may never come.
        self._callback_check_timeouts = self.loop.call_later(CHECK_SECONDS, self.cut)

    @property
    def _is_in_request(self) -> bool:
        """Whether what comes now belongs to a request that has begun."""
        http = self.http
        return http is not None and (http.stage is not Stage.IDLE or bool(http.request_body))

    @property
    def movement(self) -> tuple[int, int]:
        """Differs from what it was where the client has sent or read something since."""
        return self._num_received, self.num_unread

    @property
    def has_unread_answer(self) -> bool:
        """Whether the client leaves bytes of an answer unread."""
        return self.num_unread > 0

    @property
    def is_sending(self) -> bool:
        """Whether a part of a request has come and the rest has not."""
        http = self.http
        return http is not None and (http.stage is Stage.REQUEST or bool(http.request_body))

    @property
    def num_unread(self) -> int:
        """Bytes of answers that wait for the client to read."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def cut(self) -> None:
        """Ends the connection at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    async def wait_closed(self) -> None:
        """Until nothing works for this connection any more."""
        if self._task is not None:
            await asyncio.wait([self._task])
