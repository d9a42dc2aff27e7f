"""The worker as a process: start, steps in flight, idleness, failures, end."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_core.ipc.worker_messages import WorkerFailed, WorkerProgress, WorkerReady
from gpu_workers.threads import choose_num_threads
from tests.gpu_workers.plan_driver import Driver, PlanBuilder, Request
from tests.gpu_workers.small_models import engine_config, save_model
from tests.gpu_workers.worker_process import WorkerProcess

IDLE_SECONDS = 2.0
MAX_IDLE_WAKE_UPS = 2
"""Of all threads. One that looks for work every 0.1 s has 20."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.fixture
def worker(model_path: Path, tmp_path: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess(engine_config(model_path), tmp_path)
    yield process
    if process.process.returncode is None:
        process.stop()


def wait_until_ready(worker: WorkerProcess) -> list[WorkerProgress]:
    """The progress reports before the worker was ready."""
    reports = []
    while not isinstance(message := worker.receive(), WorkerReady):
        assert isinstance(message, WorkerProgress), message
        reports.append(message)
    assert message.weight_bytes > 0
    assert message.kv_cache_bytes == 100 * 3 * 2 * 2 * 4 * 16 * 4
    return reports


def start_request(worker: WorkerProcess, prompt: list[int]) -> None:
    """Plan 1: the whole prompt of one request in row 4."""
    builder = PlanBuilder(worker.plan(1), 1)
    builder.start_row(Request(prompt, 1, row=4))
    for index in range(10):
        builder.add_blocks(4, index, [50 - index])
    builder.finish([(4, len(prompt), prompt, True)])
    worker.send_plan(1)


def send_decode(worker: WorkerProcess, sequence: int) -> None:
    PlanBuilder(worker.plan(sequence), sequence).finish([(4, 1, [], True)])
    worker.send_plan(sequence)


@pytest.mark.slow
def test_serves_two_steps_in_flight_until_the_lifeline_closes(worker: WorkerProcess, model_path: Path) -> None:
    reports = wait_until_ready(worker)
    for stage, unit in (("weights", "B"), ("warm-up", "steps")):
        last = [report for report in reports if report.stage == stage][-1]
        assert (last.done, last.unit) == (last.total, unit)
        assert last.total > 0
    prompt, tokens = [5, 9, 2, 100, 7], []
    started = time.monotonic_ns()
    start_request(worker, prompt)
    for sequence in range(2, 21):  # each step but the first is planned before the one before it is collected
        send_decode(worker, sequence)
        result = worker.result(sequence - 1)
        tokens.append(int(result.sampled[0, 0]))
        assert (result.step_id, result.num_seqs, int(result.num_sampled[0])) == (sequence - 1, 1, 1)
        assert started < int(result.header[2]) < int(result.header[3]) < time.monotonic_ns()
    tokens.append(int(worker.result(20).sampled[0, 0]))
    while (line := worker.heartbeats.read(1)).pending:  # the beat follows the result
        assert worker.process.poll() is None
    assert line.progress == 20
    assert started < line.beat_ns <= time.monotonic_ns()
    assert worker.heartbeats.read(0) == (0, 0, 0)
    request = Request(prompt, 20, 0)
    Driver(engine_config(model_path)).run([request])
    assert tokens == request.output
    assert worker.process.poll() is None
    assert worker.stop() == (0, "")


def num_wake_ups(pid: int) -> int:
    """How often the process's threads went on running so far, once all of them sleep."""
    while True:
        statuses = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
        fields = [dict(line.split(":\t", 1) for line in status.splitlines()) for status in statuses]
        if all(field["State"].startswith("S") for field in fields):
            names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
            return sum(int(field[name]) for field in fields for name in names)


@pytest.mark.slow
def test_an_idle_worker_uses_no_cpu(worker: WorkerProcess) -> None:
    """Wake-ups say so on a busy machine too, where a share of a core says nothing."""
    wait_until_ready(worker)
    start_request(worker, [1, 2, 3])
    for sequence in range(2, 10):
        send_decode(worker, sequence)
        worker.result(sequence - 1)
    worker.result(9)
    before = num_wake_ups(worker.process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(IDLE_SECONDS)
    assert num_wake_ups(worker.process.pid) - before <= MAX_IDLE_WAKE_UPS
    send_decode(worker, 10)  # and it wakes up again
    assert worker.result(10).num_sampled[0] == 1


@pytest.mark.slow
def test_the_parents_end_during_the_start_is_noticed(model_path: Path, tmp_path: Path) -> None:
    worker = WorkerProcess(engine_config(model_path), tmp_path)
    assert worker.stop() == (0, "")


@pytest.mark.slow
def test_a_bad_checkpoint_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    worker = WorkerProcess(engine_config(tmp_path), tmp_path)
    while isinstance(message := worker.receive(), WorkerProgress):
        pass
    assert isinstance(message, WorkerFailed)
    assert message.exit_code == 2
    assert "truncated" in message.message
    assert "\n" not in message.message
    assert worker.process.wait(timeout=60) == 2
    assert worker.stop() == (2, "")


@pytest.mark.slow
def test_a_crash_is_reported_with_its_traceback_on_stderr_only(worker: WorkerProcess) -> None:
    wait_until_ready(worker)
    PlanBuilder(worker.plan(1), 1).finish([(10**6, 1, [1], True)])  # there is no such row
    worker.send_plan(1)
    message = worker.receive()
    assert isinstance(message, WorkerFailed)
    assert message.exit_code == 1
    assert "Traceback" not in message.message
    code, errors = worker.stop()
    assert code == 1
    assert "Traceback" in errors


@pytest.mark.parametrize(
    ("configured", "cores", "chosen"), [(0, 1, 1), (0, 2, 2), (0, 4, 4), (0, 8, 7), (3, 2, 3), (1, 64, 1)]
)
def test_number_of_threads(configured: int, cores: int, chosen: int) -> None:
    assert choose_num_threads(configured, cores) == chosen
