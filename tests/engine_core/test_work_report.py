"""An exception in the core's loop: every client has its answer, the log names the plan, the parent is told."""

import logging
from collections.abc import Callable

import pytest

from engine_core.ipc.codec import encode
from engine_core.ipc.control import Failed
from engine_core.ipc.messages import Utility
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.scheduler import Scheduler
from tests.engine_core.core_harness import TIMEOUT_MS, Harness, Reader, add


def raise_at(monkeypatch: pytest.MonkeyPatch, method: str, number: int, error: Exception) -> None:
    """The scheduler's `method` raises when it is called for the n-th time with requests that run."""
    original: Callable[..., object] = getattr(Scheduler, method)
    num_calls = 0

    def call(scheduler: Scheduler, *arguments: object) -> object:
        nonlocal num_calls
        num_calls += scheduler.num_running == 2
        if num_calls == number:
            raise error
        return original(scheduler, *arguments)

    monkeypatch.setattr(Scheduler, method, call)


@pytest.mark.parametrize(("method", "activity"), [("schedule", "planning"), ("update", "taking in")])
def test_the_plan_is_named_and_everybody_has_an_answer(
    method: str,
    activity: str,
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raise_at(monkeypatch, method, 3, AssertionError("a block has two owners\nand more"))
    harness.executor.gate.clear()
    readers = [Reader(harness.client()) for _ in range(2)]
    for handle, reader in enumerate(readers, 1):
        reader.socket.send(encode(add(handle, sampling=SamplingParams())))
        reader.socket.send(encode(Utility(call_id=1, method="status")))
        reader.socket.recv()
    harness.executor.gate.set()
    harness.executor.ring()
    for handle, reader in enumerate(readers, 1):
        reader.read_finals(1)
        assert reader.errors[handle].code == "engine_dead"
        assert reader.errors[handle].message == "The engine core failed; the server's log says why."
    harness.thread.join()
    assert harness.exit_code == 1
    told = harness.link.receive()
    assert isinstance(told, Failed)
    assert told.exit_code == 1
    assert told.message.startswith(f"The engine core of replica 0 failed: AssertionError while {activity} step ")
    assert told.message.endswith("(a block has two owners).")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    line = record.getMessage()
    assert line.startswith(f"AssertionError while {activity} step ")
    assert line.endswith("(a block has two owners): rows 0, 1; requests id-1, id-2.")
    assert record.exc_info is not None


def test_an_exception_beside_steps(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness.executor.gate.clear()
    reader = Reader(harness.client())
    reader.socket.send(encode(add(1)))
    assert harness.executor.has_dispatched.wait(TIMEOUT_MS / 1000)

    def fail(now: float) -> list[object]:
        raise OSError

    monkeypatch.setattr(harness.core._open, "expired", fail)
    reader.socket.send(encode(add(2)))
    reader.read_finals(1)
    assert reader.errors[1].code == "engine_dead"
    harness.thread.join()
    assert "OSError while receiving (no reason given): rows 0; requests id-1." in caplog.text


def test_a_long_plan_is_named_in_short(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(num_seqs=16)
    harness.close()
    core = harness.core
    core.scheduler.table.running[:12] = True
    core.work.begin("planning", 7)
    assert core.work.explain(ValueError("x" * 1000)) == f"ValueError while planning step 7 ({'x' * 200})"
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7 and 4 more; requests none." in caplog.text
