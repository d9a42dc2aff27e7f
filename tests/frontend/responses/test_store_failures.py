"""Files of stored responses that are full, locked, of another program: at run time and at the start."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stub_config import frontend_config, serve_config
from engine_core.config.errors import ConfigError
from frontend.errors import ApiError
from frontend.responses import database
from frontend.responses.database import claim
from frontend.responses.store import ResponseStore
from tests.frontend.responses.stores import opened, response, run, there
from tests.frontend.support import FrontendProcess, running_setup, write_model_folder
from tests.frontend.test_http_errors import error_of


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
