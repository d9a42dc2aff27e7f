"""The client of an engine core: token ids in, token ids out, over one ZeroMQ DEALER.

Needs pyzmq and msgpack only, and knows nothing of text. One task reads frames and hands the tokens of a whole step to
the waiting streams in one go. All methods belong to the event loop that `connect` ran in.
"""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, TypedDict, Unpack

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from frontend.client import wire
from frontend.client.block_events import BlockEventStream
from frontend.client.deltas import EngineInfo
from frontend.client.errors import (
    CLOSED,
    ENGINE_DEAD,
    INVALID_REQUEST,
    SHUTTING_DOWN,
    UNREACHABLE,
    UTILITY_FAILED,
    VERSION_MISMATCH,
    EngineError,
)
from frontend.client.readers import Readers
from frontend.client.request_stream import RequestStream

DEFAULT_CREDIT = 256
FAREWELL_MS = 1000
"""How long a core may take to receive the last frames of a client that closes."""


class RequestFields(TypedDict, total=False):
    """What a request may have beside its prompt and sampling parameters."""

    request_id: str | None
    output_token_ids: wire.TokenIds
    priority: int
    deadline: float | None
    share_key: str | None
    cache_salt: str | None
    adapter: str | None
    trace_context: str | None


class EngineClient:
    """Talks to one engine core.

    `credit` bounds the frames under way to this client; each is granted again once it was taken apart, and tokens that
    wait for a slow reader are merged, so that a reader that stalls delays no other one.
    """

    def __init__(self, endpoint: str, *, credit: int = DEFAULT_CREDIT) -> None:
        self.endpoint = endpoint
        self.info: EngineInfo | None = None
        """The core's welcome; None before `connect` and after the core died."""
        self._credit = credit
        self._to_grant = 0
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._readers = Readers()
        self._next_number = 0
        self._welcomed: asyncio.Future[EngineInfo] | None = None
        self._receiving: asyncio.Future[bytes] | None = None

    @property
    def num_open_requests(self) -> int:
        """Requests whose final reply has not arrived."""
        return len(self._readers.streams)

    @property
    def num_delivered_tokens(self) -> int:
        return self._readers.num_delivered_tokens

    @property
    def num_finished_requests(self) -> int:
        return self._readers.num_finished_requests

    @property
    def connected(self) -> bool:
        return self.info is not None

    async def connect(self, timeout: float = 10.0) -> EngineInfo:
        """Introduces this client to the core. After a core's death it can be called again for its successor."""
        if self.info is not None:
            return self.info
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # what waits to be sent is bounded by the requests that callers started
        socket.setsockopt(zmq.RCVHWM, 0)  # bounded by the credit
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        assert monitor is not None
        self._socket, self._monitor = socket, monitor
        self._to_grant = 0
        self._loop = asyncio.get_running_loop()
        self._welcomed = self._loop.create_future()
        socket.connect(self.endpoint)
        self._tasks = [asyncio.create_task(self._read(socket)), asyncio.create_task(self._watch(monitor))]
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)
        self._send(wire.hello(self._credit))
        try:
            info = await asyncio.wait_for(self._welcomed, timeout)
        except TimeoutError:
            self._drop_socket()
            message = f"No engine core answered at {self.endpoint} within {timeout:g} seconds."
            raise EngineError(UNREACHABLE, message) from None
        if info.version != wire.PROTOCOL_VERSION:
            self._drop_socket()
            raise EngineError(
                VERSION_MISMATCH,
                f"The engine core speaks protocol version {info.version}, this client {wire.PROTOCOL_VERSION}.",
            )
        self.info = info
        return info

    def generate(
        self, prompt_token_ids: wire.TokenIds, sampling: Mapping[str, Any], **fields: Unpack[RequestFields]
    ) -> RequestStream:
        """Starts a request at once and returns the iterator of its deltas.

        `sampling` has the fields of the protocol's sampling parameters. A request without a seed gets a random one, so
        that the same tokens can be drawn again should it have to resume. Iterating raises `EngineError`.
        """
        return self.generate_samples(prompt_token_ids, sampling, 1, **fields)[0]

    def generate_samples(
        self,
        prompt_token_ids: wire.TokenIds,
        sampling: Mapping[str, Any],
        num_samples: int,
        **fields: Unpack[RequestFields],
    ) -> list[RequestStream]:
        """The same with several samples of the prompt, which is sent once; each of them is a request of its own from
        then on, all with the same id. Sample i has the sample index `sampling["sample_index"] + i`."""
        if not 1 <= num_samples <= wire.MAX_SAMPLES:
            raise ValueError(f"num_samples must be from 1 to {wire.MAX_SAMPLES}, not {num_samples}.")
        if self.info is None:
            raise EngineError(ENGINE_DEAD, "The engine core is not connected.")
        if sampling.get("seed") is None:
            sampling = {**sampling, "seed": secrets.randbits(63)}
        request_id = fields.pop("request_id", None) or uuid.uuid4().hex
        fields["output_token_ids"] = wire.int32_bytes(fields.get("output_token_ids", ()))
        first, prompt = self._numbers(num_samples), wire.int32_bytes(prompt_token_ids)
        frame = wire.add_request(request_id, first, num_samples, prompt, sampling, fields)
        if len(frame) > wire.MAX_FRAME_BYTES:
            # The core's socket would hang up on us, and with us on everybody who shares this client.
            raise EngineError(INVALID_REQUEST, f"A request must have at most {wire.MAX_FRAME_BYTES} bytes.")
        streams = [RequestStream(first + index, request_id, self._leave) for index in range(num_samples)]
        self._readers.streams.update((stream.handle, stream) for stream in streams)
        self._send(frame)
        return streams

    def abort(self, request_id: str) -> None:
        """Ends what still runs of that id: the iterators end with finish reason `abort`."""
        handles = [stream.handle for stream in self._readers.streams.values() if stream.request_id == request_id]
        if handles:
            self._send(wire.abort(handles))

    async def utility(self, method: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Asks the core a question outside the stream of requests. Raises `EngineError` when it refuses."""
        if self.info is None:
            raise EngineError(ENGINE_DEAD, "The engine core is not connected.")
        call_id = self._numbers()
        reply = self._readers.calls[call_id] = asyncio.get_running_loop().create_future()
        self._send(wire.utility(call_id, method, arguments))
        try:
            return await asyncio.wait_for(reply, timeout)
        except TimeoutError:
            message = f"The engine core did not answer {method!r} within {timeout:g} seconds."
            raise EngineError(UTILITY_FAILED, message) from None
        finally:
            self._readers.calls.pop(call_id, None)

    def block_events(self) -> BlockEventStream:
        """What happens in the core's prefix cache from now on. The first batch has a gap: take a snapshot then."""
        if self.info is None:
            raise EngineError(ENGINE_DEAD, "The engine core is not connected.")
        if not self._readers.block_streams:
            self._send(wire.subscribe_block_events())
        return self._readers.add_block_stream()

    async def block_snapshot(self) -> AsyncIterator[list[bytes]]:
        """The digests of the blocks that can be found in the core's prefix cache, page by page."""
        cursor: int | None = 0
        while cursor is not None:
            page = await self.utility("block_snapshot", cursor=cursor)
            cursor = page["cursor"]
            yield wire.digests(page["digests"])

    def fail_open_requests(self, message: str) -> None:
        """Ends every open request in the engine, and its reader with that error."""
        handles = list(self._readers.streams)
        if handles and self.info is not None:
            self._send(wire.abort(handles))
        self._readers.fail_streams(EngineError(SHUTTING_DOWN, message))

    async def close(self) -> None:
        """Ends what runs, tells the core that this client is gone, and gives the socket back."""
        self.fail_open_requests("The client was closed.")
        tasks = self._tasks
        linger = 0
        if self.info is not None:
            self._send(wire.bye())
            linger = FAREWELL_MS
        self._end_all(EngineError(CLOSED, "The client was closed."), linger)
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # Waits for what lingers: nothing, unless the core's process stands still. Not in a thread, for this may run
        # while the interpreter exits, when no thread can be started any more.
        self._context.term()

    async def __aenter__(self) -> "EngineClient":
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _numbers(self, count: int = 1) -> int:
        """The first of so many numbers in a row that nothing open uses."""
        streams, calls, first = self._readers.streams, self._readers.calls, self._next_number
        while True:
            first = first + 1 if first + count < 2**32 else 0
            taken = [number for number in range(first, first + count) if number in streams or number in calls]
            if not taken:
                self._next_number = first + count - 1
                return first
            first = taken[-1]

    def _send(self, frame: bytes) -> None:
        # zmq.asyncio sends at once when it can and queues in order when it cannot; nobody needs to wait for either.
        if self._socket is not None:
            self._socket.send(frame, copy=True)

    def _leave(self, handle: int, ended: bool, reason: str) -> None:
        """A reader wants no more of a request. Called from anywhere: the garbage collector may be the one to notice."""
        loop = self._loop
        if ended or loop is None or loop.is_closed():
            return
        if asyncio._get_running_loop() is loop:
            self._abort_handle(handle, reason)
        else:
            loop.call_soon_threadsafe(self._abort_handle, handle, reason)

    def _abort_handle(self, handle: int, reason: str) -> None:
        self._readers.streams.pop(handle, None)
        if self.info is not None:
            self._send(wire.abort([handle], reason))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        """Takes frames until the socket goes."""
        while True:
            self._receiving = asyncio.ensure_future(socket.recv())
            kind = self._take_frame(await self._receiving)
            if kind == "utility_reply":
                self._send(wire.credit(0, num_replies=1))
            elif kind != "welcome":
                self._to_grant += 1
            if self._to_grant * 2 >= self._credit:
                self._send(wire.credit(self._to_grant))
                self._to_grant = 0
                # A frame that is there already is received without a pause: let the readers have a turn.
                await asyncio.sleep(0)

    def _take_frame(self, frame: bytes) -> str:
        """Hands on what it holds. Returns its type."""
        message = wire.unpack(frame)
        if message["type"] != "welcome":
            self._readers.take(message, None if self.info is None else self.info.epoch)
        elif self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_result(wire.welcome(message))
        kind: str = message["type"]
        return kind

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Waits for the end of the connection, which on ipc is the end of the core."""
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] != zmq.EVENT_DISCONNECTED:
                continue
            if self.info is None:
                # It went before it answered: ZeroMQ connects again by itself, but the greeting is lost.
                self._send(wire.hello(self._credit))
                continue
            while self._receiving is not None and self._receiving.done():
                # `_read` was given a frame and has not run since; it comes before the rest.
                await asyncio.sleep(0)
            self._take_the_rest()
            self._end_all(EngineError(ENGINE_DEAD, "The engine core ended while the request ran."))
            return

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """A core that sends what we cannot read is as good as dead; its readers must not wait forever."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            failure = EngineError(ENGINE_DEAD, f"The connection to the engine core failed: {error!r}.")
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_exception(failure)
            self._end_all(failure)

    def _take_the_rest(self) -> None:
        """Frames that arrived before the core ended still count: a final reply among them is a final reply."""
        assert self._socket is not None
        plain: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket)
        while True:
            try:
                frame = plain.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take_frame(frame)

    def _end_all(self, error: EngineError, linger: int = 0) -> None:
        self.info = None
        self._readers.fail_all(error)
        self._drop_socket(linger)

    def _drop_socket(self, linger: int = 0) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=linger)
            self._socket = None
        if self._monitor is not None:
            # Not left to the garbage collector: the context's end waits for every socket.
            self._monitor.close(linger=0)
            self._monitor = None
