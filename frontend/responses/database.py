"""The SQLite file of stored responses: its schema, the check at the start, and work beside the event loop.

The file is in WAL mode: readers never wait for a writer, and a process that is killed loses no committed transaction.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from engine_core.config.errors import ConfigError
from frontend.errors import ApiError, unavailable

APPLICATION_ID = 0x51756972
SCHEMA_VERSION = 1
WAIT_SECONDS = 2.0
"""The longest time that a transaction waits for those of other processes."""
MAX_WAL_BYTES = 16 * 2**20
"""To which the write-ahead log is cut once its contents are in the main file."""

SCHEMA = (
    # `owner`: the digest of an API key, or empty. `value`: a `StoredResponse` in msgpack. `writer`: the lock file of
    # the process that makes the response; NULL once its events have ended. `num_events`: those so far.
    """CREATE TABLE responses (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, created_at REAL NOT NULL,
        value BLOB NOT NULL, is_final INTEGER NOT NULL, writer TEXT, num_events INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL)""",
    "CREATE INDEX by_age ON responses (created_at)",
    "CREATE INDEX by_owner ON responses (owner, (writer IS NOT NULL), created_at)",
    "CREATE INDEX by_writer ON responses (id, num_events) WHERE writer IS NOT NULL",
    # `event`: a `ResponseEvent` in msgpack.
    """CREATE TABLE events (
        response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE, number INTEGER NOT NULL, event BLOB NOT NULL,
        PRIMARY KEY (response, number)) WITHOUT ROWID""",
    """CREATE TABLE items (
        id TEXT PRIMARY KEY, response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE) WITHOUT ROWID""",
    "CREATE INDEX items_by_response ON items (response)",
    # Sums over each owner's responses, which triggers keep.
    """CREATE TABLE owners (
        owner TEXT PRIMARY KEY, num_responses INTEGER NOT NULL, num_bytes INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TRIGGER added AFTER INSERT ON responses BEGIN
        INSERT INTO owners VALUES (new.owner, 1, new.num_bytes) ON CONFLICT DO UPDATE SET
        num_responses = num_responses + 1, num_bytes = num_bytes + excluded.num_bytes; END""",
    """CREATE TRIGGER resized AFTER UPDATE OF num_bytes ON responses BEGIN
        UPDATE owners SET num_bytes = num_bytes + new.num_bytes - old.num_bytes WHERE owner = new.owner; END""",
    """CREATE TRIGGER removed AFTER DELETE ON responses BEGIN
        UPDATE owners SET num_responses = num_responses - 1, num_bytes = num_bytes - old.num_bytes
        WHERE owner = old.owner;
        DELETE FROM owners WHERE owner = old.owner AND num_responses = 0; END""",
)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


def claim(path: str) -> int:
    """Makes the file, or checks the one that is there. While the descriptor is open no other server can claim it.

    Raises `ConfigError` for a file that cannot be used.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"The response store {path} cannot be opened: {error.strerror}.") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"The response store {path} is not a regular file.")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        check(path)
        os.fchmod(fd, 0o600)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise ConfigError(f"The response store {path} is used by another server: give each its own.") from None
        if isinstance(error, OSError):
            raise ConfigError(f"The response store {path} cannot be used: {error.strerror}.") from None
        raise
    return fd


def check(path: str) -> None:
    """Makes the tables in an empty file. Raises `ConfigError` for a file that cannot be written or read."""
    try:
        with contextlib.closing(connect(path)) as db:
            application, version = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application != APPLICATION_ID and not _is_empty(db):
                raise ConfigError(f"The response store {path} is the database of another program.")
            if version > SCHEMA_VERSION:
                raise ConfigError(
                    f"The response store {path} has version {version}; this version of Quire reads {SCHEMA_VERSION}."
                )
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise ConfigError(f"The response store {path} must be on a local file system, which has shared memory.")
            transact(db, _write_schema)
    except sqlite3.Error as error:
        raise ConfigError(f"The response store {path} cannot be used: {error}.") from None


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _write_schema(db: sqlite3.Connection) -> None:
    for statement in SCHEMA if _is_empty(db) else ():
        db.execute(statement)
    # Written at each start: a store that is full or read-only is found then.
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def connect(path: str) -> sqlite3.Connection:
    """A connection to a file that is there; any thread may use it, one at a time."""
    db = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    return db


def transact(db: sqlite3.Connection, work: Work[T]) -> T:
    """One transaction that writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    return result


def transact_all(db: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[Any]:
    """One transaction, and if that fails one for each. Returns results, and errors in the place of results."""
    try:
        return transact(db, lambda db: [work(db) for work in works])
    except sqlite3.Error as error:
        if len(works) == 1 or error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return [error] * len(works)
    return [result for work in works for result in transact_all(db, [work])]


class Database:
    """Two connections, each with a thread: what reads does not wait behind what writes."""

    def __init__(self, path: str) -> None:
        """Raises `ConfigError` as `check` does."""
        check(path)
        self._connections = connect(path), connect(path)
        self._reader, self._writer = ThreadPoolExecutor(1, "store-reader"), ThreadPoolExecutor(1, "store-writer")
        self._next: list[Work[Any]] = []
        """What is to be written together, while other things are being written."""
        self._written: asyncio.Task[list[Any]] | None = None
        """The results of `_next`."""
        self._writing = asyncio.Lock()

    async def read(self, work: Work[T]) -> T:
        """Statements that only read; each sees what was committed before it. Raises a 503."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work, self._connections[0])
        except sqlite3.Error as error:
            raise _unusable(error) from error

    async def write(self, work: Work[T]) -> T:
        """Returns once it is committed. `work` may be called again after a rollback. Raises a 503."""
        if self._written is None:
            self._written = asyncio.create_task(self._write_next())
        index = len(self._next)
        self._next.append(work)
        result = (await asyncio.shield(self._written))[index]
        if isinstance(result, sqlite3.Error):
            raise _unusable(result) from result
        written: T = result
        return written

    async def _write_next(self) -> list[Any]:
        """Processes that write often would wait long for each other: SQLite's lock has no queue."""
        async with self._writing:
            works, self._next, self._written = self._next, [], None
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._writer, transact_all, self._connections[1], works)

    def close(self) -> None:
        """Waits for what is queued."""
        for thread in (self._reader, self._writer):
            thread.shutdown()
        for db in self._connections:
            db.close()


def _unusable(error: sqlite3.Error) -> ApiError:
    return unavailable(f"The response store cannot be used now: {error}.", "response_store_failed")
