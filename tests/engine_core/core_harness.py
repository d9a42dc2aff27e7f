"""An engine core in a thread, with the fake worker behind it and raw clients before it."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
import zmq

from benchmarks.bench_engine_core import engine_config
from engine_core.__main__ import run
from engine_core.engine_core import EngineCore
from engine_core.executors.base import Executor, ExecutorFailed, ProgressCallback
from engine_core.grammar.requests import GrammarLink
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.control import ControlLink, Drain
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.messages import (
    PROTOCOL_VERSION,
    AddRequest,
    FinishedRequest,
    Hello,
    RequestError,
    RequestOutputs,
    Welcome,
)
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.sockets import bind_router
from engine_core.ipc.step import ENDED_NS, STARTED_NS, StepPlan, StepResult, StepShape
from tests.engine_core.fake_worker import FakeWorker

TIMEOUT_MS = 10_000


class FakeExecutor(Executor):
    """Runs plans in the loop's own thread; while `gate` is not set no result comes."""

    def __init__(self, shape: StepShape, num_blocks: int) -> None:
        self.worker = FakeWorker(shape, num_blocks, lambda tokens: (sum(tokens) + len(tokens)) % 500 + 10)
        self.gate = threading.Event()
        self.gate.set()
        self.has_dispatched = threading.Event()
        self.dead = False
        self.step_ns = 0
        """What results say of how long their steps took."""
        self.is_late: Callable[[int], bool] = lambda mask: False
        """Whether mask k of a step comes too late."""
        self.most_pending = 0
        self._is_asked_again = False
        self.bell = zmq.Context.instance().socket(zmq.PAIR)
        self.bell.bind(f"inproc://bell-{id(self)}")
        self._lock = threading.Lock()
        self._ringer = zmq.Context.instance().socket(zmq.PAIR)
        self._ringer.connect(f"inproc://bell-{id(self)}")
        self._plan: StepPlan | None = None
        self._result: StepResult | None = None

    def ring(self) -> None:
        """From any thread."""
        with self._lock:
            self._ringer.send(b"")

    def start(self, on_progress: ProgressCallback, interrupts: Sequence[int]) -> bool:
        return True

    def plan_slot(self) -> StepPlan:
        self._plan = self.worker.new_plan()
        return self._plan

    def dispatch(self) -> None:
        assert self._plan is not None
        self.worker.dispatch(self._plan)
        self.most_pending = max(self.most_pending, self.worker.num_pending)
        self._is_asked_again = False
        self.has_dispatched.set()

    def next_result(self) -> StepResult | None:
        """None the first time after a dispatch: whoever may plan a further step has done so before it gets a result."""
        if self._result is None and self.gate.is_set() and self.worker.num_pending:
            if self._is_asked_again:
                self._result = self.worker.run_next(self.is_late)
                self._result.header[STARTED_NS], self._result.header[ENDED_NS] = 1, 1 + self.step_ns
            else:
                self.ring()
                self._is_asked_again = True
        return self._result

    def release_result(self) -> None:
        self._result = None

    def register(self, poller: zmq.Poller) -> None:
        poller.register(self.bell, zmq.POLLIN)

    def check(self) -> None:
        while self.bell.poll(0):
            self.bell.recv()
        if self.dead:
            raise ExecutorFailed("Worker 0 died.")

    def shutdown(self) -> None:
        self.bell.close()
        self._ringer.close()


class Harness:
    """A core in a thread and raw clients that speak the protocol."""

    def __init__(
        self,
        num_seqs: int = 4,
        max_model_len: int = 64,
        grammars: GrammarLink | None = None,
        mask_timeout: float = 60.0,
    ) -> None:
        config = engine_config(num_seqs, max_model_len)
        scheduler = msgspec.structs.replace(config.scheduler, max_num_waiting=6, mask_timeout=mask_timeout)
        self.config = msgspec.structs.replace(config, scheduler=scheduler)
        self.executor = FakeExecutor(StepShape(**config.step_capacities()), config.cache.num_blocks)
        self.link, self.theirs = ControlLink.pair()
        self._folder = tempfile.TemporaryDirectory()
        self.endpoint = f"ipc://{self._folder.name}/core.sock"
        self.context = zmq.Context()
        self.sockets = [bind_router(self.context, self.endpoint, 2**20)]
        self.core = EngineCore(
            self.config,
            self.executor,
            self.sockets[0],
            self.theirs,
            Heartbeats.create(1),
            0,
            grammar_link=grammars,
        )
        self.exit_code: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.exit_code = run(self.core, self.theirs, 0)

    def client(self, credit: int = 100) -> zmq.Socket:
        socket = self.stranger()
        socket.send(encode(Hello(version=PROTOCOL_VERSION, credit=credit)))
        welcome = decode_core_message(socket.recv())
        assert isinstance(welcome, Welcome)
        assert welcome.max_model_len == self.config.scheduler.max_model_len
        return socket

    def stranger(self) -> zmq.Socket:
        """A connected socket that has not said hello."""
        socket = self.context.socket(zmq.DEALER)
        self.sockets.append(socket)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.connect(self.endpoint)
        return socket

    def close(self) -> None:
        self.executor.gate.set()
        if self.thread.is_alive():
            self.link.send(Drain(timeout=0.0))
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.executor.shutdown()
        for socket in self.sockets:
            socket.close(linger=0)
        self.context.term()
        self.link.close()
        self.theirs.close()
        self._folder.cleanup()


def move_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the time of day is so much later: deadlines pass, however slow the machine is."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def add(handle: int, prompt: Sequence[int] = (1, 2, 3), **fields: object) -> AddRequest:
    sampling = fields.pop("sampling", SamplingParams(max_tokens=5))
    defaults = {"request_id": f"id-{handle}", "handle": handle, "sampling": sampling}
    return AddRequest(prompt_token_ids=np.array(prompt, np.int32).tobytes(), **{**defaults, **fields})


class Reader:
    """What has come for a client, by handle."""

    def __init__(self, socket: zmq.Socket) -> None:
        self.socket = socket
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, FinishedRequest] = {}
        self.errors: dict[int, RequestError] = {}
        self.prompt_scores: dict[int, list[tuple[int, int]]] = {}
        """As `FakeWorker` gives them: the token before, and the token."""
        self.num_frames = 0

    def read_frame(self) -> None:
        message = decode_core_message(self.socket.recv())
        assert isinstance(message, RequestOutputs)
        self.num_frames += 1
        for entry in message.prompt_logprobs:
            before, of = np.frombuffer(entry.ranks, np.int32), -np.frombuffer(entry.logprobs, np.float32)
            assert entry.handle not in self.tokens, "a prompt's log-probabilities come after its output's beginning"
            pairs = zip(before.tolist(), of.astype(int).tolist(), strict=True)
            self.prompt_scores.setdefault(entry.handle, []).extend(pairs)
        tokens = np.frombuffer(message.token_ids, np.int32).tolist()
        for handle, count in zip(
            np.frombuffer(message.handles, np.uint32).tolist(), np.frombuffer(message.num_tokens, np.int32), strict=True
        ):
            self.tokens.setdefault(handle, []).extend(tokens[:count])
            del tokens[:count]
        assert not tokens
        for finished in message.finished:
            assert finished.handle not in self.finished | self.errors, "two finals for one request"
            self.finished[finished.handle] = finished
        for error in message.errors:
            assert error.handle not in self.finished | self.errors, "two finals for one request"
            self.errors[error.handle] = error

    def read_finals(self, count: int) -> None:
        while len(self.finished) + len(self.errors) < count:
            self.read_frame()
