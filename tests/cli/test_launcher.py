"""Children from start to end: ready, failed, killed, stubborn; and the events that a watcher makes of them."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_core.ipc.control import Drain, Failed, LinkClosed, Progress, Ready
from frontend import launcher
from frontend.launcher import Child, StartError, wait_until_ready
from frontend.supervisor.watcher import Ended, Reported, Signalled, TimedOut, Watcher

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def path_of_stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))


def start(mode: str) -> Child:
    return Child("stub", "tests.cli.stub_child", [mode], [])


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def test_a_child_that_serves_and_is_drained() -> None:
    child = start("serve")
    stages: list[str] = []
    wait_until_ready(child, lambda progress: stages.append(progress.stage))
    assert stages == ["weights"]
    assert child.is_ready
    assert child.is_alive
    assert os.getsid(child.pid) == child.pid
    launcher.stop(child, timeout=1.5)
    assert child.exit_code == 0
    assert not Path(f"/proc/{child.pid}").exists()


@pytest.mark.parametrize(
    ("mode", "message", "exit_code"),
    [
        ("fail", "It cannot be.", 2),
        ("die", "The stub was killed by SIGKILL.", 1),
        ("leave", "The stub has ended unexpectedly with exit code 3.", 1),
    ],
)
def test_a_child_that_does_not_come_up(mode: str, message: str, exit_code: int) -> None:
    with pytest.raises(StartError) as error:
        wait_until_ready(start(mode), lambda progress: None)
    assert (str(error.value), error.value.exit_code) == (message, exit_code)


def test_a_child_that_does_not_stop_is_killed() -> None:
    child = start("stubborn")
    wait_until_ready(child, lambda progress: None)
    launcher.stop(child, timeout=0.0, grace=0.0)
    assert child.exit_code == -signal.SIGKILL


def test_a_child_ends_with_its_link() -> None:
    child = start("serve")
    wait_until_ready(child, lambda progress: None)
    child.link.close()
    assert child.wait(timeout=30)
    assert child.exit_code == 0


def test_draining_a_child_that_is_gone_is_no_error() -> None:
    child = start("die")
    assert child.wait(timeout=30)
    child.drain(1.0)
    child.kill()
    child.reap()


def test_last_words_come_before_the_end(watcher: Watcher) -> None:
    child = start("fail")
    watcher.add(child)
    events: list[object] = []
    while not any(isinstance(event, Ended) for event in events):
        events.append(watcher.wait())
    kinds = [type(event.message) if isinstance(event, Reported) else type(event) for event in events]
    assert kinds == [Progress, Failed, Ended]
    assert not child.is_alive


def test_all_children_are_told_apart(watcher: Watcher) -> None:
    children = [start("serve") for _ in range(3)]
    for child in children:
        watcher.add(child)
    while not all(child.is_ready for child in children):
        assert isinstance(watcher.wait(), Reported)
    for child in children:
        child.drain(1.5)
    ended: list[Child] = []
    while len(ended) < 3:
        event = watcher.wait()
        ended += [event.child] if isinstance(event, Ended) else []
    assert {child.pid for child in ended} == {child.pid for child in children}
    assert [child.exit_code for child in children] == [0, 0, 0]


def test_signals_are_events_and_go_back_to_who_had_them() -> None:
    before = signal.getsignal(signal.SIGTERM)
    watcher = Watcher()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert [watcher.wait(), watcher.wait()] == [Signalled(signal.SIGTERM), Signalled(signal.SIGINT)]
    watcher.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_deadline(watcher: Watcher) -> None:
    assert watcher.wait(deadline=time.monotonic()) == TimedOut()


def test_a_link_whose_other_end_is_gone() -> None:
    ours, theirs = launcher.ControlLink.pair()
    theirs.close()
    with pytest.raises(LinkClosed):
        ours.send(Drain(timeout=1))
    with pytest.raises(LinkClosed):
        ours.receive()
    ours.close()
    assert Ready() == Ready(details={})
