"""Compiling strangers' grammars where it can do no harm: each is first compiled in a forked child that may be killed.

llguidance bounds most of what a grammar can cost, but not all (the multiples of a large prime take seconds and hundreds
of megabytes). The children are forked from a process that has loaded the vocabulary and never had a second thread. What
compiles in time there is compiled again by whoever asked.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from engine_core.grammar.vocabulary import Vocabulary, error_of
from engine_core.ipc.frames import FramesClosed, FrameSocket
from engine_core.ipc.grammar_messages import GrammarError

TRIAL_SECONDS = 1.5
MAX_TRIAL_BYTES = 256 * 2**20
_MAX_TRIALS = 4
"""At once; more wait."""
_NICENESS = 10
"""Steps of running requests go first."""
_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")


class TrialsEnded(RuntimeError):
    """No grammar can be tried any more."""


class Trial(msgspec.Struct, frozen=True, array_like=True):
    """A grammar to be tried."""

    number: int
    grammar: str


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What came of it: an error, or about how many bytes the compiled grammar takes."""

    number: int
    error: GrammarError | None
    num_bytes: int = 0


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    deadline: float
    output: bytearray = field(default_factory=bytearray)


class TrialProcess:
    """The process that forks, seen from the one that asks. Make it before there is any second thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._frames, theirs = FrameSocket.pair()
        self.pid = os.fork()
        if self.pid == 0:
            _run(theirs, vocabulary)
        theirs.close()

    def fileno(self) -> int:
        return self._frames.fileno()

    @property
    def has_unsent(self) -> bool:
        return self._frames.has_unsent

    def flush(self) -> None:
        self._frames.flush()

    def submit(self, trial: Trial) -> None:
        self._frames.send(msgspec.msgpack.encode(trial))

    def close(self) -> None:
        """Ends it."""
        self._frames.close()
        os.waitpid(self.pid, 0)

    def verdicts(self) -> list[Verdict]:
        """Those that have come. Raises `TrialsEnded` when the process has died."""
        try:
            return [msgspec.msgpack.decode(frame, type=Verdict) for frame in self._frames.receive()]
        except FramesClosed:
            raise TrialsEnded("The process that tries grammars has died.") from None


def _run(sock: socket.socket, vocabulary: Vocabulary) -> None:
    """The forking process, until its parent is gone. Never returns."""
    try:
        _close_all_but(sock.fileno())
        _Forker(FrameSocket(sock), vocabulary).serve()
    except FramesClosed:
        pass
    finally:
        os._exit(0)


def _close_all_but(fd: int) -> None:
    """Descriptors of the parent's: whoever waits for their end must not wait for us."""
    os.closerange(3, fd)
    os.closerange(fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


class _Forker:
    def __init__(self, frames: FrameSocket, vocabulary: Vocabulary) -> None:
        self._frames = frames
        self._vocabulary = vocabulary
        self._children: dict[int, _Child] = {}  # by the descriptor of their output
        self._waiting: deque[Trial] = deque()

    def serve(self) -> None:
        while True:
            readable = self._wait()
            if self._frames.fileno() in readable:
                self._waiting.extend(msgspec.msgpack.decode(frame, type=Trial) for frame in self._frames.receive())
            self._frames.flush()
            for fd in readable & self._children.keys():
                self._read(fd)
            now = time.monotonic()
            for fd in [fd for fd, child in self._children.items() if child.deadline <= now]:
                os.kill(self._children[fd].pid, signal.SIGKILL)
                self._end(fd, f"it takes more than {TRIAL_SECONDS:g} seconds to compile")
            while self._waiting and len(self._children) < _MAX_TRIALS:
                self._fork(self._waiting.popleft())

    def _wait(self) -> set[int]:
        timeout = None
        if self._children:
            timeout = max(0.0, min(child.deadline for child in self._children.values()) - time.monotonic())
        writing = [self._frames] if self._frames.has_unsent else []
        readable, _, _ = select.select([self._frames.fileno(), *self._children], writing, [], timeout)
        return set(readable)

    def _fork(self, trial: Trial) -> None:
        """A child for the trial; where the system has none to give, this grammar alone is refused."""
        try:
            output, theirs = os.pipe()
        except OSError as error:
            self._refuse(trial, error)
            return
        try:
            pid = os.fork()
        except OSError as error:
            os.close(output)
            os.close(theirs)
            self._refuse(trial, error)
            return
        if pid == 0:
            _try(trial, theirs, self._vocabulary)
        os.close(theirs)
        self._children[output] = _Child(trial.number, pid, time.monotonic() + TRIAL_SECONDS)

    def _refuse(self, trial: Trial, error: OSError) -> None:
        refusal = GrammarError(str(error.strerror), is_wrong=False)
        self._frames.send(msgspec.msgpack.encode(Verdict(trial.number, refusal)))

    def _read(self, fd: int) -> None:
        data = os.read(fd, 65536)
        child = self._children[fd]
        child.output += data
        if data:
            return
        if child.output:
            error, num_bytes = msgspec.msgpack.decode(child.output, type=tuple[str | None, int])
            self._end(fd, error, num_bytes)
        else:
            self._end(fd, f"it takes more than {MAX_TRIAL_BYTES >> 20} MiB of memory to compile")

    def _end(self, fd: int, error: str | None, num_bytes: int = 0) -> None:
        child = self._children.pop(fd)
        os.close(fd)
        os.waitpid(child.pid, 0)
        verdict = Verdict(child.number, None if error is None else GrammarError(error), num_bytes)
        self._frames.send(msgspec.msgpack.encode(verdict))


def _try(trial: Trial, output: int, vocabulary: Vocabulary) -> None:
    """One child's whole life: bounded in memory and, should its parent die, in processor time."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.nice(_NICENESS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # last words of an allocator are no news for the user
        size, resident = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (size + MAX_TRIAL_BYTES, size + MAX_TRIAL_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(MemoryError):
            matcher = vocabulary.compile(trial.grammar)
            verdict = error_of(matcher), max(0, _memory()[1] - resident)
            os.write(output, msgspec.msgpack.encode(verdict))
    finally:
        os._exit(0)


def _memory() -> tuple[int, int]:
    """Bytes of this process: of its address space, and in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size, resident = file.read().split()[:2]
    return int(size) * _PAGE, int(resident) * _PAGE
