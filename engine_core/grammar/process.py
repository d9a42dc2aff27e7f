"""The grammar process as its engine core sees it: started, watched, spoken to, ended."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from engine_core.executors.base import ExecutorFailed
from engine_core.ipc.frames import FramesClosed, FrameSocket
from engine_core.ipc.grammar_messages import (
    FromGrammar,
    GrammarReady,
    ToGrammar,
    decode_from_grammar,
    encode_grammar_message,
)
from engine_core.ipc.heartbeat import Heartbeats

_GRACE_SECONDS = 5.0
"""How long it may take to end once its link is cut, before it is killed."""


class GrammarProcess:
    """Started on construction; `wait_until_ready` before the first request."""

    def __init__(
        self,
        config_path: str,
        replica: int,
        plan_fd: int,
        bell_fds: Sequence[int],
        heartbeats: Heartbeats,
        heartbeat_index: int,
    ) -> None:
        """`bell_fds`: an eventfd of each worker, rung when the late part of a plan is there."""
        self._replica = replica
        self._frames, theirs = FrameSocket.pair()
        self.refusal: str | None = None
        """Why this model can have no grammars."""
        fds = {"link-fd": theirs.fileno(), "plan-fd": plan_fd, "heartbeat-fd": heartbeats.fd}
        arguments = ["--bell-fds", ",".join(map(str, bell_fds)), "--heartbeat-index", str(heartbeat_index)]
        for name, fd in fds.items():
            arguments += [f"--{name}", str(fd)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine_core.grammar", config_path, *arguments],
            pass_fds=[*fds.values(), *bell_fds],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # It forks: a library's threads would be missing in the children.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def wait_until_ready(self, interrupts: Sequence[int]) -> bool:
        """Blocks until it takes requests, or has said why it never will. False: a descriptor among `interrupts` became
        readable first. Raises `ExecutorFailed` when it ends instead."""
        while True:
            readable, _, _ = select.select([self.fileno(), *interrupts], [], [])
            if any(fd in readable for fd in interrupts):
                return False
            for message in self.receive():
                assert isinstance(message, GrammarReady), message
                self.refusal = message.refusal
                return True

    def fileno(self) -> int:
        return self._frames.fileno()

    @property
    def has_unsent(self) -> bool:
        return self._frames.has_unsent

    def send(self, message: ToGrammar) -> None:
        """Never blocks. Raises `ExecutorFailed` when the process is gone."""
        try:
            self._frames.send(encode_grammar_message(message))
        except FramesClosed:
            raise self._death() from None

    def receive(self) -> list[FromGrammar]:
        """What has come; sends what had to wait. Raises `ExecutorFailed` when the process is gone."""
        try:
            self._frames.flush()
            return [decode_from_grammar(frame) for frame in self._frames.receive()]
        except FramesClosed:
            raise self._death() from None

    def _death(self) -> ExecutorFailed:
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ExecutorFailed(f"The grammar process of replica {self._replica} died ({cause}).")

    def close(self) -> None:
        """Cuts the link, waits for the end, kills who is late. May be called twice."""
        self._frames.close()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
