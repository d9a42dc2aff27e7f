"""The sides of an offline comparison, behind one interface: Quire's `LLM` in this process, peers in theirs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.environment import ROOT, process_environment
from benchmarks.figures import Run
from benchmarks.peers import METHODS
from benchmarks.works import make_work
from quire import LLM, SamplingParams


class PeerError(RuntimeError):
    """A peer cannot be measured; the message is a sentence."""


class Side(Protocol):
    """An engine that is up. `names` are the rows that it fills in the table."""

    names: Sequence[str]
    ready_seconds: float

    def run(self, name: str, work: str, repeat: int, scale: int) -> Run:
        """Measures one run."""

    def close(self) -> None:
        """Ends it and gives its memory back."""


class Quire:
    """Our engine. Keeps when each run began and ended, to find its steps in the timeline."""

    names = ("quire",)

    def __init__(self, model: str, vocab_size: int, settings: dict[str, Any]) -> None:
        self._vocab_size = vocab_size
        self.spans: list[tuple[str, float, float]] = []
        """Work, begin and end in microseconds of `time.monotonic`, of every measured run."""
        start = time.perf_counter()
        self._llm = LLM(model, **settings)
        self.ready_seconds = time.perf_counter() - start

    def run(self, name: str, work: str, repeat: int, scale: int) -> Run:
        requests = make_work(work, self._vocab_size, repeat, scale)
        sampling = [
            SamplingParams(temperature=requests.temperature, max_tokens=each.num_output_tokens, ignore_eos=True, seed=i)
            for i, each in enumerate(requests.requests)
        ]
        prompts = [request.prompt for request in requests.requests]
        begin = time.monotonic_ns()
        outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        end = time.monotonic_ns()
        for output, request in zip(outputs, requests.requests, strict=True):
            assert len(output.outputs[0].token_ids) == request.num_output_tokens
        if repeat >= 0:
            self.spans.append((work, begin / 1e3, end / 1e3))
        metrics = outputs[0].metrics
        assert metrics is not None
        num_hit_tokens = sum(output.num_cached_tokens for output in outputs)
        return Run((end - begin) / 1e9, metrics.queue_time + metrics.prefill_time, num_hit_tokens)

    def close(self) -> None:
        self._llm.close()


class PeerProcess:
    """Another engine in a process of its own (peers.py)."""

    def __init__(self, peer: str, options: dict[str, object]) -> None:
        """Raises `PeerError` when it does not come up."""
        self.names = tuple(f"{peer}, {method}" if method else peer for method in METHODS[peer])
        self._methods = dict(zip(self.names, METHODS[peer], strict=True))
        self._peer = peer
        reply_fd, their_fd = os.pipe()
        command = [sys.executable, "-m", "benchmarks.peers", peer, "--reply-fd", str(their_fd)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        try:
            # What it prints goes to stderr: stdout is ours.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sys.stderr,
                pass_fds=[their_fd],
                cwd=ROOT,
                env=process_environment(),
                text=True,
            )
        finally:
            os.close(their_fd)
        self._replies = os.fdopen(reply_fd, encoding="utf-8")
        self.ready_seconds: float = self._reply()["ready_seconds"]

    def run(self, name: str, work: str, repeat: int, scale: int) -> Run:
        assert self._process.stdin is not None
        order = {"method": self._methods[name], "work": work, "repeat": repeat, "scale": scale}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Run(**self._reply())

    def _reply(self) -> dict[str, Any]:
        """Raises `PeerError` when it says nothing more."""
        line = self._replies.readline()
        if not line:
            self.close()
            raise PeerError(f"{self._peer} has ended; what it printed tells why.")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._replies.close()
        self._process.wait(60)
