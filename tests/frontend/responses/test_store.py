"""The file of stored responses: bounds, ends, items, events; writers that are killed."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.responses import store
from frontend.responses.following import follow
from frontend.responses.store import ResponseStore
from tests.frontend.responses.stores import delta, events_of, opened, response, run, there


def test_who_has_most_loses_the_oldest(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        for name in "abc":
            await store.add(response(name, owner="one"))
        for name in "ABCDEFGH":
            await store.add(response(name, "x" * 4000, owner="two"))
        assert await there(store, "abc", "one") == "abc"
        kept = await there(store, "ABCDEFGH", "two")
        assert kept == "ABCDEFGH"[-len(kept) :]
        assert 2 <= len(kept) < 8
        for name in "defghijkl":  # too many, however small
            await store.add(response(name, owner="one"))
        kept = await there(store, "ABCDEFGH", "two")
        assert kept
        assert await there(store, "abcdefghijkl", "one") == "abcdefghijkl"[len(kept) - 10 :]
        for name in "ABCDEFGH":
            await store.delete(name)
        for name in "abcdefghijkl":
            await store.delete(name)
        assert await store._database.read(lambda db: db.execute("SELECT * FROM owners").fetchall()) == []

    run(tmp_path, scenario, max_bytes=16_000, max_responses=10)


def test_what_is_too_old_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(store.time, "time", lambda: now)

    async def scenario(store: ResponseStore) -> None:
        nonlocal now
        await store.add(response("a"))
        now = 1099.0
        assert await there(store, "a") == "a"
        now = 1101.0
        assert await there(store, "a") == ""
        await store.add(response("b"))
        assert await store._database.read(lambda db: db.execute("SELECT id FROM responses").fetchall()) == [("b",)]

    run(tmp_path, scenario, max_age=100.0)


def test_what_runs_goes_last(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        await store.begin(response("a", status="in_progress"))
        for name in "bcd":
            await store.add(response(name))
        assert await there(store, "abcd") == "ad"

    run(tmp_path, scenario, max_responses=2)


def test_the_first_end_counts(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        await store.begin(response("a", status="in_progress"))
        assert await store.end_early(response("a", status="cancelled"))
        assert not await store.end_early(response("a", status="cancelled"))
        assert (await store.finish(response("a"), 7)).response.status == "cancelled"
        loaded = await store.load("a", None)
        assert (loaded.response.status, loaded.num_events) == ("cancelled", 7)
        assert await store.find_items(["ai"], None) == [None]

    run(tmp_path, scenario)


def test_what_is_deleted_before_its_end_does_not_come_back(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        await store.begin(response("a", status="in_progress"))
        await store.add_event("a", delta(2))
        await store.delete("a")
        await store.add_event("a", delta(3))
        await store.finish(response("a"), 4)
        assert await there(store, "a") == ""
        for table in ("events", "items", "owners"):
            assert await store._database.read(lambda db, t=table: db.execute(f"SELECT * FROM {t}").fetchall()) == []

    run(tmp_path, scenario)


def test_items_are_found_as_long_as_their_response(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        await store.add(response("a", owner="one"))
        await store.begin(response("b", owner="one", status="in_progress"))
        assert await store.find_items(["bi", "ai"], "one") == [None, "a"]
        await store.finish(response("b", owner="one"), 2)
        assert await store.find_items(["bi", "ai", "x"], "one") == ["b", "a", None]
        assert await store.find_items(["bi"], "two") == [None]
        await store.delete("a")
        assert await store.find_items(["ai"], "one") == [None]

    run(tmp_path, scenario)


def test_a_follower_gets_events_as_they_come(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        with opened(tmp_path) as other:
            await store.begin(response("a", status="in_progress"))
            events = follow(await other.load("a", None), 1, other)
            assert (await anext(events)).sequence_number == 1
            for number in (2, 3):
                coming = asyncio.ensure_future(anext(events))
                await store.add_event("a", delta(number, "y"))
                assert await coming == delta(number, "y")
            coming = asyncio.ensure_future(anext(events))
            await store.finish(response("a", status="failed"), 4)
            assert (await coming).sequence_number == 4
            assert await anext(events, None) is None
            assert [event.sequence_number for event in await events_of(other, "a")] == [0, 1, 2, 3, 4]
            assert await events_of(other, "a", 5) == []

    run(tmp_path, scenario)


def test_more_events_than_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "EVENTS_AT_ONCE", 3)

    async def scenario(store: ResponseStore) -> None:
        await store.begin(response("a", status="in_progress"))
        for number in range(2, 12):
            await store.add_event("a", delta(number))
        await store.finish(response("a", status="failed"), 12)
        assert [event.sequence_number for event in await events_of(store, "a")] == list(range(13))

    run(tmp_path, scenario)


def test_events_beyond_the_bound_come_with_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_EVENT_BYTES", 5000)

    async def scenario(store: ResponseStore) -> None:
        await store.begin(response("a", status="in_progress"))
        for number in range(2, 12):
            await store.add_event("a", delta(number, "x" * 1000))
        events, is_open = await store.events("a", 0)
        assert is_open
        assert 0 < len(events) < 10
        await store.finish(response("a", status="failed"), 12)
        assert [event.sequence_number for event in await events_of(store, "a")][-2:] == [len(events) + 1, 12]

    run(tmp_path, scenario)


WRITER = """
import asyncio, sys
from frontend.responses.store import ResponseStore
from tests.frontend.responses.stores import delta, response

async def write():
    store = ResponseStore(sys.argv[1] + "/r.db", sys.argv[1])
    await store.begin(response("a", status="in_progress"))
    await store.add(response("b"))
    number = 2
    while True:
        await store.add_event("a", delta(number, "x" * 500))
        print(number, flush=True)
        number += 1

asyncio.run(write())
"""


@pytest.mark.parametrize("num_events", [1, 40, 300])
def test_a_writer_that_is_killed_at_any_point(tmp_path: Path, num_events: int) -> None:
    async def scenario(store: ResponseStore) -> None:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd(), text=True
        )
        assert writer.stdout is not None
        for _ in range(num_events):
            last = int(writer.stdout.readline())
        assert (await store.load("a", None)).response.status == "in_progress"
        following = asyncio.ensure_future(events_of(store, "a"))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        events = await following
        writer.stdout.close()
        numbers = [event.sequence_number for event in events]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= last + 2, "what was told to be written is there"
        loaded = await store.load("a", None)
        assert loaded.response.status == "failed"
        assert loaded.response.error is not None
        assert loaded.response.error.message == store_module.ABANDONED
        assert (await store.load("b", None)).response.status == "completed"
        assert await store._database.read(lambda db: db.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]

    store_module = store
    run(tmp_path, scenario)


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    async def first(store: ResponseStore) -> None:
        await store.add(response("a", "text"))
        await store.begin(response("b", status="in_progress"))

    async def second(store: ResponseStore) -> None:
        assert await there(store, "ab") == "ab"
        assert (await store.load("a", None)).response.output[0].id == "ai"
        assert (await store.load("b", None)).response.status == "failed"

    run(tmp_path, first)
    run(tmp_path, second)
