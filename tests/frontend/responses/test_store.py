"""The file of stored responses: bounds, ends, items, events; other processes; files that cannot be used."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stub_config import frontend_config, serve_config
from engine_core.config.errors import ConfigError
from frontend.errors import ApiError
from frontend.protocol.response_events import OutputTextDelta, ResponseEvent
from frontend.protocol.responses import OutputMessage, OutputText, ResponsesRequest
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses import database, store
from frontend.responses.answer import new_response
from frontend.responses.database import check, claim
from frontend.responses.following import follow
from frontend.responses.store import ResponseStore
from tests.frontend.support import FrontendProcess, running_setup, write_model_folder
from tests.frontend.test_http_errors import error_of

Scenario = Callable[[ResponseStore], Awaitable[None]]


def response(name: str, text: str = "", *, owner: str | None = None, status: Any = "completed") -> StoredResponse:
    """With one item, whose id is that of the response and an `i`."""
    made = new_response(ResponsesRequest(input="x", background=True), name, "m")
    made.status = status
    if status == "completed":
        content = [OutputText(text=text)]
        made.output = [OutputMessage(id=f"{name}i", status="completed", content=content)]
    return StoredResponse(response=made, messages=[], item_ids=[], deltas=[[]] * len(made.output), owner=owner)


def delta(number: int, text: str = "x") -> OutputTextDelta:
    fields = {"item_id": "i", "output_index": 0, "content_index": 0, "logprobs": []}
    return OutputTextDelta(sequence_number=number, delta=text, **fields)  # type: ignore[arg-type]


@contextlib.contextmanager
def opened(folder: Path, **limits: Any) -> Iterator[ResponseStore]:
    check(str(folder / "r.db"))
    made = ResponseStore(str(folder / "r.db"), str(folder), **limits)
    yield made
    made.close()


def run(folder: Path, scenario: Scenario, **limits: Any) -> None:
    with opened(folder, **limits) as made:
        asyncio.run(_awaited(scenario(made)))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def there(store: ResponseStore, names: str, owner: str | None = None) -> str:
    """Those of the names that are found."""
    found = ""
    for name in names:
        with contextlib.suppress(ApiError):
            found += (await store.load(name, owner)).response.id
    return found


async def events_of(store: ResponseStore, name: str, start: int = 0) -> list[ResponseEvent]:
    return [event async for event in follow(await store.load(name, None), start, store)]


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
from tests.frontend.responses.test_store import delta, response

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


def test_a_full_file_is_an_error_of_the_request(tmp_path: Path) -> None:
    async def scenario(store: ResponseStore) -> None:
        await store.add(response("a"))
        await store._database.write(lambda db: db.execute("SELECT 1"))
        limited = store._database._connections[1]
        pages = limited.execute("PRAGMA page_count").fetchone()[0]
        limited.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ApiError, match="full") as caught:
            await store.add(response("b", "x" * 100_000))
        assert caught.value.status == 503
        assert await there(store, "ab") == "a"
        limited.execute("PRAGMA max_page_count = 100000")
        await store.add(response("b", "x" * 100_000))
        assert await there(store, "ab") == "ab"

    run(tmp_path, scenario)


def test_what_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    """Of several writes in one transaction."""

    async def scenario(store: ResponseStore) -> None:
        await store.add(response("a"))
        limited = store._database._connections[1]
        pages = limited.execute("PRAGMA page_count").fetchone()[0]
        limited.execute(f"PRAGMA max_page_count = {pages + 4}")
        texts = {"b": "", "c": "x" * 100_000, "d": "", "e": "x" * 100_000, "f": ""}
        work = (store.add(response(name, text)) for name, text in texts.items())
        results = await asyncio.gather(*work, return_exceptions=True)
        assert [isinstance(result, ApiError) for result in results] == [False, True, False, True, False]
        assert await there(store, "abcdef") == "abdf"

    run(tmp_path, scenario)


def test_processes_that_open_it_at_once(tmp_path: Path) -> None:
    code = "import sys; from frontend.responses.database import check; check(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "r.db")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4


def test_a_locked_file_is_an_error_of_the_requests_that_write(tmp_path: Path) -> None:
    """Those that read, or store nothing, do not wait."""
    with running_setup(tmp_path) as setup:
        setup.say("x")
        path = f"/v1/responses/{setup.post('/v1/responses', {'input': 'x'}).json()['id']}"
        with contextlib.closing(sqlite3.connect(tmp_path / "responses.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for fields in ({}, {"background": True}):
                error = error_of(setup.post("/v1/responses", {"input": "x", **fields}), 503)
                assert error["code"] == "response_store_failed"
                assert "locked" in error["message"]
            assert setup.post("/v1/responses", {"input": "x", "store": False}).status_code == 200
            assert setup.http.get(path).status_code == 200
            assert setup.chat().status_code == 200
        assert setup.post("/v1/responses", {"input": "x"}).status_code == 200


# At the start


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    os.close(claim(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    os.close(claim(str(path)))
    with opened(tmp_path):
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("r.db*")} == {0o600}


def test_a_second_server_is_refused(tmp_path: Path) -> None:
    fd = claim(str(tmp_path / "r.db"))
    with pytest.raises(ConfigError, match="used by another server"):
        claim(str(tmp_path / "r.db"))
    os.close(fd)
    os.close(claim(str(tmp_path / "r.db")))


def newer(path: Path) -> None:
    os.close(claim(str(path)))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def another_programs(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (a)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (newer, "has version 99"),
        (another_programs, "another program"),
        (lambda path: path.write_bytes(b"text" * 1000), "not a database"),
        (Path.mkdir, "directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "cannot be opened"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "r.db"
    make(path)
    with pytest.raises(ConfigError, match=message) as caught:
        claim(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frontend_that_finds_it_says_so(tmp_path: Path) -> None:
    write_model_folder(tmp_path)
    newer(tmp_path / "responses.db")
    frontend = FrontendProcess(tmp_path, serve_config(tmp_path, frontend_config(tmp_path)))
    assert frontend.wait_exit() == 2
    assert frontend.child.failed is not None
    assert "has version 99" in frontend.child.failed.message
    frontend.stop()


def test_a_file_that_is_locked_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.01)
    os.close(claim(str(tmp_path / "r.db")))
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="locked"):
            claim(str(tmp_path / "r.db"))
    os.close(claim(str(tmp_path / "r.db")))
