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


def test_who_has_most_loses_its_own_oldest() -> None:
    store = ResponseStore(max_bytes=100, max_values=8)
    for number in range(3):
        assert store.put(f"a{number}", b"x", None, owner="a")
    for number in range(12):
        assert store.put(f"b{number}", b"x" * 30, None, owner="b")
    assert [store.get(f"a{number}") for number in range(3)] == [b"x"] * 3
    assert [number for number in range(12) if store.get(f"b{number}")] == [9, 10, 11]
    assert store.put("c0", b"x" * 40, None, owner="c")
    assert [number for number in range(12) if store.get(f"b{number}")] == [11], "the larger one made room"
    for number in range(9):  # too many, however small
        assert store.put(f"d{number}", b"", None)
    assert [store.get(name) is not None for name in ("a0", "b11", "c0")] == [True, True, True]
    assert [number for number in range(9) if store.get(f"d{number}") is not None] == [6, 7, 8]
    for name in ("a0", "a1", "a2", "b11", "c0", "d6", "d7", "d8"):
        assert store.remove(name)
    assert (len(store), store.num_bytes) == (0, 0)


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


def test_items_lead_to_their_value_as_long_as_it_is_kept() -> None:
    store = ResponseStore(max_bytes=100, max_values=2)
    assert store.put("a", b"1", None, items=("a0", "a1"))
    assert store.put("b", b"1", b"w", items=("b0",))
    assert store.put("b", b"2", None, items=("b1",))
    assert [store.name_of_item(item) for item in ("a0", "a1", "b0", "b1", "c0")] == ["a", "a", None, "b", None]
    assert store.num_bytes == 8
    assert store.put("c", b"1", None, items=("c0",))  # a goes
    assert [store.name_of_item(item) for item in ("a0", "a1", "b1", "c0")] == [None, None, "b", "c"]
    assert store.remove("c")
    assert (store.name_of_item("c0"), store.num_items, store.num_bytes) == (None, 1, 3)
    assert store.put("d", b"1", None, items=tuple(f"d{number:08}" for number in range(9)))
    assert not store.put("e", b"1", None, items=tuple(f"e{number:09}" for number in range(10)))  # larger than all
    assert store.num_items == 10


def test_of_two_values_with_one_item_the_later_one_counts() -> None:
    store = ResponseStore()
    store.put("a", b"1", None, items=("i",))
    store.put("b", b"1", None, items=("i",))
    store.remove("a")
    assert store.name_of_item("i") == "b"


def test_progress_goes_with_its_value() -> None:
    store = ResponseStore(max_bytes=20)
    assert not store.put_progress("a", b"p")
    assert store.put("a", b"begun", b"w")
    assert store.put_progress("a", b"12345")
    assert (store.progress_of("a"), store.num_bytes, store.writer_of("a")) == (b"12345", 10, b"w")
    assert not store.put_progress("a", b"p" * 16)
    assert store.put("a", b"cancelled", None)
    assert (store.progress_of("a"), store.num_bytes) == (b"12345", 14)
    assert store.put_progress("a", b"123456")  # the last of one that was cancelled comes after its end
    assert (store.get("a"), store.progress_of("a")) == (b"cancelled", b"123456")
    assert store.put("b", b"x" * 10, b"w", progress=b"y")
    assert (store.get("a"), store.progress_of("a"), store.num_bytes) == (None, b"", 11)
    assert store.put("b", b"done", None, progress=b"")
    assert (store.progress_of("b"), store.num_bytes) == (b"", 4)


def test_what_is_deleted_before_its_end_does_not_come_back() -> None:
    store = ResponseStore(max_values=2)
    store.put("a", b"begun", b"w", progress=b"p")
    assert store.remove("a")
    assert not store.put("a", b"done", None)
    assert not store.put_progress("a", b"p")
    assert (store.get("a"), store.progress_of("a"), store.writer_of("a"), store.num_bytes) == (None, b"", None, 0)
    assert not store.remove("a")
    assert not store.put("a", b"done", None)
    for name in "bc":
        store.put(name, b"", None)
    assert len(store) == 2


def test_every_client_reaches_it(harness: Harness) -> None:
    one, other = harness.client(), harness.client()
    assert ask(one, "store_response", name="r", value=b"\x00\xff", is_final=True).result is True
    assert ask(other, "load_response", name="r").result == {"value": b"\x00\xff", "is_abandoned": False}
    assert ask(other, "delete_response", name="r").result is True
    assert ask(one, "load_response", name="r").result == {"value": None, "is_abandoned": False}


def test_every_client_finds_items_and_progress(harness: Harness) -> None:
    one, other = harness.client(), harness.client()
    assert ask(other, "load_progress", name="r").result == {"progress": b"", "is_running": False}
    ask(one, "store_response", name="r", value=b"", is_final=False)
    assert ask(one, "store_progress", name="r", progress=b"\x01").result is True
    assert ask(other, "load_progress", name="r").result == {"progress": b"\x01", "is_running": True}
    assert ask(other, "find_items", items=["i"]).result == [None]
    ask(other, "store_response", name="r", value=b"v", is_final=True, items=["i"], progress=b"")
    assert ask(other, "find_items", items=["x", "i"]).result == [None, "r"]
    assert ask(other, "load_progress", name="r").result == {"progress": b"", "is_running": False}


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
    assert ask(reader, "load_progress", name="begun").result["is_running"] is False
    assert ask(reader, "load_response", name="done").result == {"value": b"d", "is_abandoned": False}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("store_response", {"name": "", "value": b"", "is_final": True}),
        ("store_response", {"name": "r", "value": 5, "is_final": True}),
        ("store_response", {"name": "r", "value": b"", "is_final": True, "items": [""]}),
        ("store_progress", {"name": "r"}),
        ("load_response", {}),
        ("load_progress", {"name": 1}),
        ("find_items", {"items": "i"}),
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
