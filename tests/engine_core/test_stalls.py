"""What could hold up a step: collections of garbage, of which the core makes none, and modules that load late."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from benchmarks.environment import ROOT
from engine_core import engine_core, garbage
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.messages import AbortRequest, Bye, Utility
from tests.engine_core.core_harness import Harness, Reader, add


@pytest.fixture
def held() -> Iterator[None]:
    garbage.hold()
    yield
    garbage.release()


def test_it_runs_when_the_core_is_idle_and_not_before(
    held: None, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections: list[int] = []
    has_collected = threading.Event()

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(info["generation"])
        has_collected.set()

    monkeypatch.setattr(engine_core, "_IDLE_POLL_MS", 60_000)  # a slow machine is no idle core
    client = harness.client(credit=1000)
    reader = Reader(client)
    gc.callbacks.append(note)
    try:
        for handle in range(100):
            client.send(encode(add(handle)))
            reader.read_finals(handle + 1)
        assert not collections
        monkeypatch.setattr(engine_core, "_IDLE_POLL_MS", 1)
        client.send(encode(add(100)))
        assert has_collected.wait(10)
    finally:
        gc.callbacks.remove(note)


def test_the_core_makes_no_cycles(held: None) -> None:
    """Whatever clients do: requests that end, are aborted, refused or malformed, questions, and goodbyes."""
    harness = Harness()
    for _ in range(3):
        client = harness.client()
        reader = Reader(client)
        for handle in range(6):
            client.send(encode(add(handle, request_id=f"{handle}")))
        client.send(encode(AbortRequest(handles=[5])))
        client.send(encode(add(6, prompt=())))
        client.send(encode(add(7, prompt=[1] * 1000)))
        client.send(encode(add(8)).replace(b"prompt_token_ids", b"prompt_token_idz"))
        reader.read_finals(9)
        assert len(reader.errors) == 3
        for method in ("metrics", "inspect", "nothing"):
            client.send(encode(Utility(call_id=1, method=method)))
            decode_core_message(client.recv())
        client.send(encode(add(9)))
        client.send(encode(Bye()))
    harness.close()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(each) for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    ours = [kind for kind in kinds if kind.__module__.startswith("engine_core") or issubclass(kind, BaseException)]
    assert not ours
    assert FrameType not in kinds


def test_serving_loads_no_module() -> None:
    """As some functions of numpy do at their first call, 14 ms of the first step that uses them."""
    code = """
import sys
from benchmarks import bench_engine_core
from engine_core.engine_core import EngineCore
run, late = EngineCore.run, set()
def watched(core):
    before = set(sys.modules)
    run(core)
    late.update(set(sys.modules) - before)
EngineCore.run = watched
bench_engine_core.measure(4, 160)
print(sorted(name for name in late if name.startswith(("numpy", "engine_core", "msgspec"))))
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
