"""The receiving end of requests: what arrives waits here, merged, until the reader takes it.

A stream holds at most one delta, so a slow reader costs memory for its own tokens and nothing else, and these are
bounded: the request of a reader that lets too many bytes wait ends with an error. Any number of streams can share one
`Inbox`; the reader is woken once, however many of them have news.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from frontend.client.deltas import Finished, LogprobColumns, TokenDelta, int32_array
from frontend.client.errors import READER_TOO_SLOW, EngineError

MAX_UNREAD_BYTES = 64 * 2**20
"""Of token ids (4 bytes each) and log-probabilities (8 bytes each) that came since the reader was told of news."""
MAX_HELD_UP_BYTES = 4 * 2**20
"""The same where the reader waits for somebody else, who may never read on."""


class Inbox:
    """Streams with unread news, in order of arrival, and the one reader that may wait for them."""

    __slots__ = ("_waiter", "is_held_up", "max_unread_bytes", "num_unread_bytes", "ready")

    def __init__(self, max_unread_bytes: float = MAX_UNREAD_BYTES) -> None:
        """`max_unread_bytes` bounds all its streams together."""
        self.max_unread_bytes = max_unread_bytes
        self.num_unread_bytes = 0
        self.is_held_up: Callable[[], bool] = lambda: False
        """Whether the reader waits for somebody to whom it hands on what it reads."""
        self.ready: deque[RequestStream] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_overfull(self) -> bool:
        unread = self.num_unread_bytes
        return unread > self.max_unread_bytes or (unread > MAX_HELD_UP_BYTES and self.is_held_up())

    def put(self, stream: "RequestStream") -> None:
        self.ready.append(stream)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Returns once a stream has news."""
        if self.ready:
            return
        assert self._waiter is None, "one reader at a time"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class RequestStream:
    """One request's deltas, as an asynchronous iterator. Leaving it before its end aborts the request."""

    __slots__ = (
        "__weakref__",
        "_error",
        "_finished",
        "_inbox",
        "_leave",
        "_logprobs",
        "_num_cached_tokens",
        "_num_unread_bytes",
        "_prompt_logprobs",
        "_queued",
        "_token_ids",
        "closed",
        "handle",
        "request_id",
    )

    def __init__(self, handle: int, request_id: str, leave: "Callable[[int, bool, str], None]") -> None:
        self.handle = handle
        self.request_id = request_id
        self.closed = False
        """True once the final delta or error was taken, or the request was left."""
        self._leave = leave
        self._inbox = Inbox()
        self._queued = False
        self._num_unread_bytes = 0
        self._token_ids = int32_array()
        self._logprobs: LogprobColumns | None = None
        self._prompt_logprobs: LogprobColumns | None = None
        self._num_cached_tokens: int | None = None
        self._finished: Finished | None = None
        self._error: EngineError | None = None

    # What the client calls while it takes a frame apart.

    def start(self, num_cached_tokens: int) -> None:
        """Its first token comes next."""
        self._num_cached_tokens = num_cached_tokens

    def push_tokens(self, token_ids: "array[int]") -> None:
        if self._token_ids:
            self._token_ids.extend(token_ids)
        else:
            self._token_ids = token_ids
        if self._queued:
            self._count_unread(len(token_ids) * token_ids.itemsize)
        else:
            self._notify()

    def push_logprobs(self, columns: LogprobColumns) -> None:
        if self._logprobs is None:
            self._logprobs = columns
        else:
            self._logprobs.extend(columns)
        if self._queued:
            self._count_unread(columns.num_bytes)

    def push_prompt_logprobs(self, columns: LogprobColumns) -> None:
        """They wait for the first token."""
        if self._prompt_logprobs is None:
            self._prompt_logprobs = columns
        else:
            self._prompt_logprobs.extend(columns)

    def finish(self, finished: Finished) -> None:
        self._finished = finished
        self._num_cached_tokens = finished.num_cached_tokens
        if not self._queued:
            self._notify()

    def fail(self, error: EngineError) -> None:
        self._error = error
        if not self._queued:
            self._notify()

    @property
    def ended(self) -> bool:
        """Whether the final reply has arrived, read or not."""
        return self._finished is not None or self._error is not None

    def _notify(self) -> None:
        self._queued = True
        self._inbox.put(self)

    def _count_unread(self, num_bytes: int) -> None:
        """Ends the request where its reader leaves too much unread."""
        inbox = self._inbox
        self._num_unread_bytes += num_bytes
        inbox.num_unread_bytes += num_bytes
        if inbox.is_overfull and not self.ended:
            message = f"The request was ended: {inbox.num_unread_bytes} bytes of output had not been read."
            self._take_unread()
            self._error = EngineError(READER_TOO_SLOW, message)
            self._leave(self.handle, False, "abort")

    def _take_unread(self) -> TokenDelta:
        delta = TokenDelta(
            self._token_ids, self._logprobs, self._finished, self._prompt_logprobs, self._num_cached_tokens
        )
        self._token_ids = int32_array()
        self._logprobs = self._prompt_logprobs = None
        self._inbox.num_unread_bytes -= self._num_unread_bytes
        self._num_unread_bytes = 0
        return delta

    # What the reader calls.

    def move_to(self, inbox: Inbox) -> None:
        """Announces news in `inbox` from now on."""
        self._inbox.num_unread_bytes -= self._num_unread_bytes
        self._inbox = inbox
        inbox.num_unread_bytes += self._num_unread_bytes
        if self._queued:
            inbox.put(self)

    def take(self) -> TokenDelta:
        """All that waits, as one delta. Raises the request's `EngineError` once its tokens were taken."""
        if self._error is not None and not self._token_ids:
            self.closed = True
            raise self._error
        delta = self._take_unread()
        self._queued = False
        if self._finished is not None:
            self.closed = True
        elif self._error is not None:
            self._notify()
        return delta

    def close(self, reason: str = "abort") -> None:
        """Ends the request in the engine, unless it has ended by itself. May be called at any time, also twice.

        `reason`: what it counts as, `abort` or `stop`: the reader has found the end of the answer.
        """
        if not self.closed:
            self.closed = True
            self._leave(self.handle, self.ended, reason)

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self.closed:
            raise StopAsyncIteration
        try:
            await self._inbox.wait()
        except asyncio.CancelledError:
            self.close()
            raise
        self._inbox.ready.popleft()
        return self.take()

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> "RequestStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A reader that dropped the iterator (a `break` out of `async for`) wants no more of it.
        if not self.closed:
            self.close()


class StreamGroup:
    """Several requests read by one reader: yields (index, delta) as they come, until all have ended."""

    def __init__(self, streams: list[RequestStream]) -> None:
        self._streams = streams
        self._index = {stream.handle: index for index, stream in enumerate(streams)}
        self._inbox = Inbox()
        for stream in streams:
            stream.move_to(self._inbox)

    def hands_on_to(self, is_held_up: Callable[[], bool]) -> None:
        """Its reader hands on what it reads to somebody, for whom it waits at times."""
        self._inbox.is_held_up = is_held_up

    def __aiter__(self) -> AsyncIterator[tuple[int, TokenDelta]]:
        return self

    async def __anext__(self) -> tuple[int, TokenDelta]:
        ready = self._inbox.ready
        while True:
            while ready:
                stream = ready.popleft()
                if not stream.closed:
                    return self._index[stream.handle], stream.take()
            if all(stream.closed for stream in self._streams):
                raise StopAsyncIteration
            await self._inbox.wait()

    def close_one(self, index: int, reason: str = "abort") -> None:
        """Ends one of the requests, as `RequestStream.close` does."""
        self._streams[index].close(reason)

    def close(self) -> None:
        """Ends all that still run."""
        self._inbox.ready.clear()  # an unread stream would hold itself through the inbox
        for stream in self._streams:
            stream.close()
