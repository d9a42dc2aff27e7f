"""Where a request's preparation runs: on the event loop if it is light, else in one of a few processes.

So whatever a request asks of a template, a tokenizer or a grammar, the loop goes on; a preparation that takes too much,
or whose client has hung up, ends with its process.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TypeVar

import msgspec

from engine_core.ipc.messages import ERROR_OVERLOADED, ERROR_RESOURCES
from frontend.errors import ApiError, bad_request, unavailable
from frontend.preparation.asking import asking
from frontend.preparation.jobs import AnyJob, Job, encode_job
from frontend.preparation.preparer import Preparer
from frontend.preparation.processes import (
    GREETING,
    JOB_BYTES,
    JOB_HEADER,
    JOB_SECONDS,
    REPLY_HEADER,
    Refused,
    Reply,
    fork_forker,
)
from frontend.preparation.turns import TooManyWaiting, Turns

LARGE_JOB_BYTES = 2**20
"""From so many on, memory is taken for the reason why a process has ended: the tokenizer's library ends its process
where memory is refused, and raises nothing."""
NUM_PROCESSES = max(2, min(4, len(os.sched_getaffinity(0))))

R = TypeVar("R")

logger = logging.getLogger(__name__)
_reply_decoder: "msgspec.msgpack.Decoder[Reply]" = msgspec.msgpack.Decoder(Reply)


class _ProcessEnded(Exception):
    """A preparation process is gone."""


class _Process:
    """A preparation process, seen from the event loop."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._socket = sock
        self.is_usable = True
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise _ProcessEnded from None

    @classmethod
    async def greeted(cls, sock: socket.socket) -> "_Process":
        """Once it has said who it is. Raises `_ProcessEnded`."""
        return cls(sock, *GREETING.unpack(await _receive(sock, GREETING.size)))

    @property
    def is_alive(self) -> bool:
        poll = select.poll()  # `select.select` takes no descriptor from 1024 on
        poll.register(self._pidfd, select.POLLIN)
        return self.is_usable and not poll.poll(0)

    async def ask(self, frame: bytes) -> Reply:
        """Raises `_ProcessEnded`."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._socket, JOB_HEADER.pack(len(frame)))
            await loop.sock_sendall(self._socket, frame)
        except OSError:
            raise _ProcessEnded from None
        num_bytes, is_last = REPLY_HEADER.unpack(await _receive(self._socket, REPLY_HEADER.size))
        self.is_usable = not is_last
        return _reply_decoder.decode(await _receive(self._socket, num_bytes))

    def end(self) -> None:
        """At once, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._socket.close()


class PreparationPool:
    """Make it before there is a second thread, and use it from one event loop."""

    def __init__(self, preparer: Preparer, config_file: str) -> None:
        """`config_file`: what `preparer` was loaded from, for a process that has to load it again."""
        self.preparer = preparer
        self._config_file = config_file
        self._control = fork_forker(preparer)
        self._later_forker: subprocess.Popen[bytes] | None = None
        """Kept so that the handle of a running process is not collected."""
        self._idle: list[_Process] = []
        self._turns = Turns(NUM_PROCESSES)

    async def run(self, job: Job[R]) -> R:
        """The job's result. Raises the `ApiError` that it ends with."""
        if job.is_light:
            return job.run(self.preparer)
        assert isinstance(job, AnyJob)
        try:
            async with self._turns.turn(asking().client):
                await asyncio.sleep(0)  # reading a long body and writing it again are two turns of the loop
                reply = await self._ask(encode_job(job))
        except TooManyWaiting:
            message = "Too many long requests of this client wait to be prepared."
            raise ApiError(429, message, code=ERROR_OVERLOADED, headers={"Retry-After": "1"}) from None
        if isinstance(reply, Refused):
            raise ApiError(reply.status, reply.message, param=reply.param, code=reply.code, headers=reply.headers)
        result: R = msgspec.msgpack.decode(reply.result, type=job.result_type)
        return result

    def close(self) -> None:
        """Ends all processes."""
        for process in self._idle:
            process.end()
        self._idle.clear()
        self._control.close()

    async def _ask(self, frame: bytes) -> Reply:
        process = await self._take_process()
        began = time.monotonic()
        try:
            reply = await process.ask(frame)
        except _ProcessEnded:
            process.end()
            if time.monotonic() - began >= JOB_SECONDS:
                raise bad_request(
                    f"This request takes more than {JOB_SECONDS:g} seconds of a processor to be prepared: "
                    "its template, its texts or its structure ask for too much."
                ) from None
            if len(frame) >= LARGE_JOB_BYTES:
                raise bad_request(
                    f"This request's {len(frame)} bytes could not be prepared within the {JOB_BYTES / 2**30:g} GiB of "
                    "memory that one request may have: shorter texts would do."
                ) from None
            logger.warning("A preparation process has ended unexpectedly.")
            raise ApiError(500, "The process that prepared this request has ended.", code="internal_error") from None
        except BaseException:
            process.end()  # nobody waits for its result any more
            raise
        self._idle.append(process)
        return reply

    async def _take_process(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            process.end()
        try:
            return await self._start()
        except (_ProcessEnded, OSError):
            message = "No process could be started to prepare this request: processes or memory are short."
            raise unavailable(message, ERROR_RESOURCES) from None

    async def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:  # closed before the wait: who is never answered sees the end of the stream
                self._send(theirs)
            return await _Process.greeted(ours)
        except BaseException:
            ours.close()
            raise

    def _send(self, sock: socket.socket) -> None:
        """Hands a new process' socket to the process that forks. One that has died is replaced."""
        try:
            socket.send_fds(self._control, [b"p"], [sock.fileno()])
        except OSError:
            logger.warning("The process that forks preparation processes has ended; another one is started.")
            self._control.close()
            self._control = self._start_forker()
            socket.send_fds(self._control, [b"p"], [sock.fileno()])

    def _start_forker(self) -> socket.socket:
        """A new interpreter, which loads tokenizer and templates again. This process has threads by now, and a fork
        would have their locks without them."""
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-P", "-m", "frontend.preparation", self._config_file, "--control-fd", str(fd)]
            self._later_forker = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[fd])
        return ours


async def _receive(sock: socket.socket, num_bytes: int) -> bytearray:
    """That many bytes. Raises `_ProcessEnded` at the end of the stream."""
    loop = asyncio.get_running_loop()
    data = bytearray(num_bytes)
    view = memoryview(data)
    num_read = 0
    while num_read < num_bytes:
        try:
            count = await loop.sock_recv_into(sock, view[num_read:])
        except OSError:
            raise _ProcessEnded from None
        if count == 0:
            raise _ProcessEnded
        num_read += count
    return data
