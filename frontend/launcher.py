"""Starting, watching and stopping the child processes, as one reusable piece for the supervisor and for `LLM`.

A child lives in its own session (a terminal's Ctrl-C reaches the parent only), knows its parent by a control link and
ends when that link ends. Nothing here decides policy: who is started when and what a death means stands elsewhere.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine_core.ipc.control import ControlLink, ControlMessage, Drain, Failed, LinkClosed, Progress, Ready
from engine_core.ipc.heartbeat import Heartbeats

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""For a process that forks: NumPy's library starts no threads, which would be missing in what is forked."""


class StartError(RuntimeError):
    """A child ended before it was ready; the message is a sentence, `exit_code` what the program should end with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """One child process with its control link and a descriptor that becomes readable when it ends."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], fds: Sequence[int], env: Mapping[str, str] | None = None
    ) -> None:
        """`env`: beside the variables of this process."""
        self.name = name
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.link, theirs = ControlLink.pair()
        link_fd = theirs.fileno()
        try:
            # -P: a folder of the module's name in the user's directory must not be imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments, "--link-fd", str(link_fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(link_fd, *fds),
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        except OSError:
            self.link.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    @property
    def is_ready(self) -> bool:
        return self.ready is not None

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    def receive(self) -> list[ControlMessage]:
        """What it has reported since the last call; readiness and failure are remembered."""
        messages: list[ControlMessage] = []
        try:
            while (message := self.link.receive()) is not None:
                messages.append(message)
                if isinstance(message, Ready):
                    self.ready = message
                elif isinstance(message, Failed):
                    self.failed = message
        except LinkClosed:
            self.link.close()
        return messages

    @property
    def is_link_open(self) -> bool:
        return self.link.fileno() >= 0

    def drain(self, timeout: float) -> None:
        """Asks it to finish within `timeout` seconds and to exit; one that is gone already needs no asking."""
        with contextlib.suppress(LinkClosed, OSError):
            self.link.send(Drain(timeout=timeout))

    def kill(self) -> None:
        """Ends it at once, with everything in its session's first process group."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Takes the exit code of a child whose `pidfd` is readable, or waits for it."""
        if self.is_alive:
            self._process.wait()
        if self.is_link_open:
            self.receive()
            self.link.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds; it is reaped then."""
        if self.is_alive and not select.select([self.pidfd], [], [], timeout)[0]:
            return False
        self.reap()
        return True

    def describe_end(self) -> str:
        """One sentence on why it is gone: its own last words where there are any."""
        if self.failed is not None:
            return self.failed.message
        code = self.exit_code or 0
        if code >= 0:
            return f"The {self.name} has ended unexpectedly with exit code {code}."
        return f"The {self.name} was killed by {signal.Signals(-code).name}."


def start_core(config_file: str, replica: int, heartbeats: Heartbeats, index: int) -> Child:
    """One engine core, which starts its own workers at once."""
    arguments = [config_file, "--replica", str(replica), *_heartbeat_flags(heartbeats, index)]
    return Child("engine core", "engine_core", arguments, [heartbeats.fd])


def start_frontend(config_file: str, number: int, listen_fd: int, heartbeats: Heartbeats, index: int) -> Child:
    """One HTTP frontend on a socket that the parent has bound and keeps."""
    arguments = [config_file, "--index", str(number), "--listen-fd", str(listen_fd)]
    arguments += _heartbeat_flags(heartbeats, index)
    return Child("frontend", "frontend", arguments, [listen_fd, heartbeats.fd], ONE_THREAD)


def _heartbeat_flags(heartbeats: Heartbeats, index: int) -> list[str]:
    return ["--heartbeat-fd", str(heartbeats.fd), "--heartbeat-index", str(index)]


def wait_until_ready(child: Child, on_progress: Callable[[Progress], None]) -> None:
    """Blocks until one child serves. Raises `StartError` when it ends instead."""
    while not child.is_ready:
        watched: list[Any] = [child.pidfd, child.link] if child.is_link_open else [child.pidfd]
        readable = select.select(watched, [], [])[0]
        for message in child.receive() if child.is_link_open else []:
            if isinstance(message, Progress):
                on_progress(message)
        if child.pidfd in readable:
            child.reap()
            raise StartError(child.describe_end(), child.failed.exit_code if child.failed else 1)


def stop(child: Child, timeout: float, grace: float = 10.0) -> None:
    """Drains a child for `timeout` seconds and kills it when it has not gone `grace` seconds after that."""
    child.drain(timeout)
    deadline = time.monotonic() + timeout + grace
    if not child.wait(max(0.0, deadline - time.monotonic())):
        child.kill()
        child.reap()
