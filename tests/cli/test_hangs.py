"""Who hangs: tables of heartbeats in, verdicts out. Time is an argument; a table stands still until a test moves it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.model_config import ModelConfig
from engine_core.ipc.heartbeat import Heartbeats, core_line, grammar_line, worker_line
from engine_core.planning.hang_timeout import BASE_SECONDS, default_hang_timeout
from frontend.supervisor.hangs import MAX_INTERVAL, HangWatch, Watched

CORE, WORKER, FRONTEND = 0, 1, 2
TIMEOUT = 60.0


class Server:
    """One engine core, one worker, one frontend, all just started; and the watch at its looks."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.table = Heartbeats.create(3)
        self.now = 1000.0
        processes = [Watched("worker", WORKER, core=CORE), Watched("core", CORE), Watched("frontend", FRONTEND)]
        self.watch = HangWatch(self.table, processes, timeout, self.now)
        self.steps = 0
        self.pending = 0
        self.taken = 0

    def beat(self, *alive: int) -> None:
        """One turn of those who are alive. A worker that is alive finishes a step if there is work, and else sleeps."""
        if WORKER in alive and (self.pending or self.taken):
            self.steps += 1
            self.table.beat(WORKER, self.steps, 0)
            self.taken = 0
        if CORE in alive:
            self.table.beat(CORE, self.steps, self.pending)
        if FRONTEND in alive:
            self.table.beat(FRONTEND, self.steps, self.pending)

    def pass_time(self, seconds: float, *alive: int, interval: float = MAX_INTERVAL) -> tuple[str, float] | None:
        """Looks every `interval` seconds: who hangs, and how many seconds from now that was found."""
        start = self.now
        while self.now < start + seconds:
            self.beat(*alive)
            self.now += interval
            if hang := self.watch.look(self.now):
                assert hang.seconds >= TIMEOUT
                return hang.process.name, self.now - start
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    os.close(server.table.fd)


def test_who_has_retired_is_not_missed(server: Server) -> None:
    """Under load for ten timeouts, the worker's line like that of a grammar process without a job."""
    server.pending = 3
    server.table.beat(WORKER, 0, 2)
    server.table.retire(WORKER)
    assert server.pass_time(10 * TIMEOUT, CORE, FRONTEND) is None
    assert server.table.read(WORKER).is_retired
    assert not server.table.read(CORE).is_retired
    assert server.pass_time(2 * TIMEOUT, FRONTEND) is not None, "the core is still watched"


def test_the_order_of_lines() -> None:
    """Two replicas of two workers: core, its workers, its grammar process, the other core and its own, frontends."""
    cores = [core_line(replica, 2) for replica in range(3)]
    lines = [
        line for core in cores[:2] for line in (core, worker_line(core, 0), worker_line(core, 1), grammar_line(core, 2))
    ]
    assert [*lines, cores[2]] == list(range(9))


def test_what_is_written_can_be_read(server: Server) -> None:
    assert server.table.read(1) == (0, 0, 0)
    server.table.beat(1, progress=2**40, pending=7)
    line = server.table.read(1)
    assert line[1:] == (2**40, 7)
    assert line.beat_ns > 0
    assert server.table.read(0) == server.table.read(2) == (0, 0, 0)


def test_an_idle_server_may_idle(server: Server) -> None:
    """Also one whose worker has never run a step, or ran the last one long ago."""
    assert server.pass_time(10_000, CORE, WORKER, FRONTEND) is None
    server.pending = 1
    assert server.pass_time(20, CORE, WORKER, FRONTEND) is None
    server.pending = 0
    assert server.pass_time(10_000, CORE, WORKER, FRONTEND) is None
    server.pending = 1  # a request after a long silence: the silence before does not count
    assert server.pass_time(30, CORE, FRONTEND) is None
    assert server.pass_time(10_000, CORE, WORKER, FRONTEND) is None


@pytest.mark.parametrize("taken", [0, 1])
def test_a_worker_that_stands_still(server: Server, taken: int) -> None:
    """Whether it was stopped between two steps or inside one; its core goes on beating."""
    server.pending = 2
    assert server.pass_time(50, CORE, WORKER, FRONTEND) is None
    server.table.beat(WORKER, server.steps, taken)
    hang = server.pass_time(1000, CORE, FRONTEND)
    assert hang is not None
    assert hang[0] == "worker"
    assert TIMEOUT <= hang[1] <= TIMEOUT + 2 * MAX_INTERVAL


def test_a_worker_whose_requests_are_gone_still_has_its_step(server: Server) -> None:
    server.pending = 1
    assert server.pass_time(50, CORE, WORKER, FRONTEND) is None
    server.table.beat(WORKER, server.steps, 1)
    server.pending = 0  # aborted
    hang = server.pass_time(1000, CORE, FRONTEND)
    assert hang is not None
    assert hang[0] == "worker"


def test_a_long_step_within_the_timeout(server: Server) -> None:
    server.pending = 1
    for _ in range(20):
        server.table.beat(WORKER, server.steps, 1)
        assert server.pass_time(TIMEOUT - 2 * MAX_INTERVAL, CORE, FRONTEND) is None
        assert server.pass_time(MAX_INTERVAL, CORE, WORKER, FRONTEND) is None


@pytest.mark.parametrize("pending", [0, 3])
@pytest.mark.parametrize("worker_first", [False, True])
def test_a_core_that_stands_still(server: Server, pending: int, worker_first: bool) -> None:
    """It is blamed, not its worker, which has been silent for as long or for a look longer."""
    server.pending = pending
    assert server.pass_time(50, CORE, WORKER, FRONTEND) is None
    if worker_first:
        assert server.pass_time(MAX_INTERVAL, CORE, FRONTEND) is None
    hang = server.pass_time(1000, WORKER if not pending else FRONTEND, FRONTEND)
    assert hang is not None
    assert hang[0] == "core"
    assert TIMEOUT <= hang[1] <= TIMEOUT + 2 * MAX_INTERVAL


def test_a_frontend_that_stands_still(server: Server) -> None:
    """What blocks its loop need not have become an open request yet."""
    assert server.pass_time(50, CORE, WORKER, FRONTEND) is None
    hang = server.pass_time(1000, CORE, WORKER)
    assert hang is not None
    assert hang[0] == "frontend"


def test_progress_without_a_beat_is_a_sign_of_life(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the beats may stand; what counts is that anything moves."""
    server.pending = 1
    monkeypatch.setattr("engine_core.ipc.heartbeat.time.monotonic_ns", lambda: 5)
    assert server.pass_time(1000, CORE, WORKER, FRONTEND) is None


def test_who_was_away_himself_blames_nobody(server: Server) -> None:
    """A paused container, a machine that stood still: the others had no time either."""
    server.pending = 1
    assert server.pass_time(50, CORE, WORKER, FRONTEND) is None
    server.now += 10 * TIMEOUT
    assert server.watch.look(server.now) is None
    assert server.pass_time(TIMEOUT - 2 * MAX_INTERVAL, interval=MAX_INTERVAL) is None
    hang = server.pass_time(1000)
    assert hang is not None
    assert hang[0] == "core"


def test_a_short_timeout_is_looked_at_more_often() -> None:
    server = Server(timeout=4.0)
    assert server.watch.interval == 1.0
    os.close(server.table.fd)


def model(**changes: Any) -> ModelConfig:
    values = {
        "architecture": "LlamaForCausalLM",
        "path": "",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    }
    return ModelConfig(**{**values, **changes})


def test_the_default_exceeds_the_longest_step_on_a_slow_cpu() -> None:
    """8 billion parameters: 2 x 8.03e9 x 2048 operations in products, 4 x 32 x 4096 x 2048 x 8192 in attention."""
    scheduler = SchedulerConfig(
        max_num_seqs=8, max_num_batched_tokens=2048, max_model_len=8192, max_num_waiting=1, max_num_penalty_rows=0
    )
    assert default_hang_timeout(model(), scheduler, "cuda") == BASE_SECONDS
    seconds = default_hang_timeout(model(), scheduler, "cpu") - BASE_SECONDS
    assert seconds == pytest.approx((3.289e13 + 8.796e12) / 5e9, rel=1e-3)
    tiny = model(vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=8)
    assert default_hang_timeout(tiny, scheduler, "cpu") == pytest.approx(BASE_SECONDS, abs=5)
