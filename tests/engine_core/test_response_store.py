"""Answers kept for frontends: bounded, the first end counts; and requests ended by the beginning of their ids."""

import pytest

from engine_core.ipc.codec import encode
from engine_core.ipc.messages import FINISH_ABORT, Bye
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.response_store import ResponseStore
from tests.engine_core.core_harness import Harness, Reader, add
from tests.engine_core.test_inspector import ask


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(max_bytes=30, max_values=3)
    for name in "abc":
        assert store.put(name, b"x" * 10, None)
    assert store.get("a") == b"x" * 10
    assert store.put("d", b"y", None)
    assert [store.get(name) is None for name in "abcd"] == [False, True, False, False]
    assert store.put("e", b"z" * 20, b"w")
    assert (len(store), store.num_bytes) == (2, 21)
    assert not store.put("f", b"z" * 31, None)
    assert store.num_bytes == 21


def test_the_first_end_counts() -> None:
    store = ResponseStore()
    assert store.put("a", b"running", b"w")
    assert store.put("a", b"still running", b"w")
    assert store.writer_of("a") == b"w"
    assert store.put("a", b"cancelled", None)
    assert not store.put("a", b"completed", None)
    assert store.writer_of("a") is None
    assert store.get("a") == b"cancelled"
    assert store.remove("a")
    assert not store.remove("a")
    assert (len(store), store.num_bytes) == (0, 0)


def test_every_client_reaches_it(harness: Harness) -> None:
    one, other = harness.client(), harness.client()
    assert ask(one, "store_response", name="r", value=b"\x00\xff", is_final=True).result is True
    assert ask(other, "load_response", name="r").result == {"value": b"\x00\xff", "is_abandoned": False}
    assert ask(other, "delete_response", name="r").result is True
    assert ask(one, "load_response", name="r").result == {"value": None, "is_abandoned": False}


@pytest.mark.parametrize("says_bye", [False, True])
def test_what_a_client_leaves_unfinished_is_abandoned(harness: Harness, says_bye: bool) -> None:
    writer, reader = harness.client(), harness.client()
    ask(writer, "store_response", name="begun", value=b"b", is_final=False)
    ask(writer, "store_response", name="done", value=b"d", is_final=True)
    for client in (writer, reader):
        assert ask(client, "load_response", name="begun").result == {"value": b"b", "is_abandoned": False}
    if says_bye:
        writer.send(encode(Bye()))
    writer.close()
    while not ask(reader, "load_response", name="begun").result["is_abandoned"]:
        pass
    assert ask(reader, "load_response", name="done").result == {"value": b"d", "is_abandoned": False}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("store_response", {"name": "", "value": b"", "is_final": True}),
        ("store_response", {"name": "r", "value": 5, "is_final": True}),
        ("load_response", {}),
        ("delete_response", {"name": "r", "more": 1}),
        ("abort_requests", {"prefix": "short"}),
    ],
)
def test_what_is_refused(harness: Harness, method: str, arguments: dict[str, object]) -> None:
    assert (ask(harness.client(), method, **arguments).error or "").startswith(f"{method}: ")


def test_requests_end_by_the_beginning_of_their_ids(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    for handle, request_id in enumerate(("resp_0123456789-0-a", "resp_0123456789-1-b", "resp_9876543210-0-a")):
        request = add(handle, request_id=request_id, sampling=SamplingParams(max_tokens=4))
        client.send(encode(request))
    while ask(other, "status").result["pending"] < 3:
        pass
    assert ask(other, "abort_requests", prefix="resp_0123456789-").result == 2
    harness.executor.gate.set()
    harness.executor.ring()
    reader = Reader(client)
    reader.read_finals(3)
    assert {handle: final.reason == FINISH_ABORT for handle, final in reader.finished.items()} == {
        0: True,
        1: True,
        2: False,
    }
