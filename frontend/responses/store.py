"""Responses that later requests may refer to, in a SQLite file that all frontends read and write.

A response that runs in the background is stored at its beginning, and its events as they come, so that every frontend
can follow it. Once it has an answer its events follow from that, and their rows go. The first end of a response counts.
"""

import asyncio
import sqlite3
import time
from collections.abc import Iterable

import msgspec

from frontend.errors import ApiError, bad_request
from frontend.protocol.chat import ChatMessage
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import fail_response
from frontend.responses.database import Database
from frontend.responses.writer_lock import WriterLock, is_held

MAX_STORE_BYTES = 128 * 2**20
MAX_RESPONSES = 16_384
MAX_AGE_SECONDS = 30 * 86_400.0
MAX_VALUE_BYTES = 16 * 2**20
MAX_CONVERSATION_BYTES = MAX_VALUE_BYTES // 2
"""Of the messages before an answer, so that the answer has room as well."""
MAX_EVENT_BYTES = 32 * 2**20
"""Of the rows of one response. Those who follow it get what is beyond when it has an answer."""
EVENTS_AT_ONCE = 256
LOOK_SECONDS = 0.01
"""Between two looks at what other processes have written, while somebody follows a response."""
LOOKS = 25
"""After so many without news a follower looks whether the writer still runs."""
ABANDONED = "The server process that worked on this response ended before it was finished: send the request again."
HAS_ANSWER = ("completed", "incomplete")
"""Statuses of a response whose output is whole: its events and its items follow from it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoredResponse).decode
_decode_event = msgspec.msgpack.Decoder(ResponseEvent).decode


def check_conversation_size(messages: list[ChatMessage]) -> None:
    """Raises a 400 before anything is generated that could not be kept."""
    if len(_encode(messages)) > MAX_CONVERSATION_BYTES:
        raise bad_request(
            f"The conversation is longer than {MAX_CONVERSATION_BYTES} bytes and cannot be stored: send store: false.",
            "input",
        )


class ResponseStore:
    """One for a process. Where there is no more room, the owner of the most loses its oldest.

    So each of N owners can keep an N-th part. Every method raises a 503 where the file can't be used.
    """

    def __init__(
        self,
        path: str,
        run_dir: str,
        *,
        max_bytes: int = MAX_STORE_BYTES,
        max_responses: int = MAX_RESPONSES,
        max_age: float = MAX_AGE_SECONDS,
    ) -> None:
        """Raises `ConfigError` for a file that cannot be used."""
        self._database = Database(path)
        self._lock = WriterLock(run_dir)
        self._limits = {"num_bytes": max_bytes, "num_responses": max_responses}
        self._max_age = max_age
        self._look: asyncio.Task[dict[str, int]] | None = None

    def close(self) -> None:
        self._database.close()
        self._lock.release()

    async def add(self, stored: StoredResponse) -> None:
        """One that has an answer. Raises a 500 for one that is too long."""
        await self._add(stored, None)

    async def begin(self, stored: StoredResponse) -> None:
        """One that runs in this process. `finish` it in any case."""
        await self._add(stored, self._lock.path)

    async def _add(self, stored: StoredResponse, writer: str | None) -> None:
        value, items, now = _value_of(stored), _items_of(stored), time.time()

        def write(db: sqlite3.Connection) -> None:
            row = (stored.response.id, stored.owner or "", now, value, writer is None, writer, _num_bytes(value, items))
            cursor = db.execute("INSERT INTO responses VALUES (NULL, ?, ?, ?, ?, ?, ?, 0, ?)", row)
            db.executemany("INSERT INTO items VALUES (?, ?)", [(item, cursor.lastrowid) for item in items])
            self._make_room(db, now)

        await self._database.write(write)

    async def add_event(self, response_id: str, event: ResponseEvent) -> None:
        """Of a response that runs in this process; nothing where it was deleted."""
        encoded, now = _encode(event), time.time()
        number = event.sequence_number

        def write(db: sqlite3.Connection) -> None:
            updated = db.execute(
                "UPDATE responses SET num_events = ?, num_bytes = num_bytes + ? WHERE id = ? AND writer IS NOT NULL "
                "AND num_bytes < ? RETURNING key",
                (number + 1, len(encoded), response_id, MAX_EVENT_BYTES),
            ).fetchall()
            if updated:
                db.execute("INSERT INTO events VALUES (?, ?, ?)", (*updated[0], number, encoded))
                self._make_room(db, now)

        await self._database.write(write)

    async def finish(self, stored: StoredResponse, num_events: int) -> StoredResponse:
        """The end of one that runs in this process, after so many events. Returns it as it has ended.

        A cancel may have been faster; it may have been deleted. Raises a 500 for one that is too long.
        """
        value, items, now = _value_of(stored), _items_of(stored), time.time()

        def write(db: sqlite3.Connection) -> bytes | None:
            row = db.execute(
                "SELECT key, value, is_final FROM responses WHERE id = ? AND writer IS NOT NULL", (stored.response.id,)
            ).fetchone()
            if row is None:
                return None
            key, earlier, is_final = row
            db.execute("UPDATE responses SET writer = NULL, num_events = ? WHERE key = ?", (num_events, key))
            if is_final:
                return bytes(earlier)
            db.execute("UPDATE responses SET value = ?, is_final = 1 WHERE key = ?", (value, key))
            if stored.response.status in HAS_ANSWER:
                db.execute("DELETE FROM events WHERE response = ?", (key,))
                db.executemany("INSERT INTO items VALUES (?, ?)", [(item, key) for item in items])
                db.execute("UPDATE responses SET num_bytes = ? WHERE key = ?", (_num_bytes(value, items), key))
            self._make_room(db, now)
            return None

        earlier = await self._database.write(write)
        return stored if earlier is None else _decode(earlier)

    async def end_early(self, stored: StoredResponse) -> bool:
        """By a cancel, or because its process is gone. Whether this is its end: it may have ended before."""
        value, response_id = _value_of(stored), stored.response.id

        def write(db: sqlite3.Connection) -> bool:
            statement = "UPDATE responses SET value = ?, is_final = 1 WHERE id = ? AND NOT is_final"
            return db.execute(statement, (value, response_id)).rowcount > 0

        return await self._database.write(write)

    async def load(self, response_id: str, owner: str | None) -> StoredResponse:
        """Raises a 404 where there is none (any more). One whose frontend died before its end has failed."""
        statement = "SELECT value, is_final, writer, num_events FROM responses WHERE id = ? AND owner = ?"
        statement += " AND created_at > ?"
        arguments = (response_id, owner or "", time.time() - self._max_age)
        row = await self._database.read(lambda db: db.execute(statement, arguments).fetchone())
        if row is None:
            message = f"There is no stored response {response_id[:128]!r}; the oldest are forgotten first."
            raise ApiError(404, message, code="response_not_found")
        value, is_final, writer, num_events = row
        stored = _decode(value)
        if not is_final and not is_held(writer):
            fail_response(stored.response, ApiError(500, ABANDONED, code="server_error"))
            if not await self.end_early(stored):  # somebody else has seen it and was faster
                return await self.load(response_id, owner)
        stored.num_events = num_events if writer is None else None
        return stored

    async def find_items(self, item_ids: list[str], owner: str | None) -> list[str | None]:
        """Which of the owner's responses has each of these items."""
        statement = "SELECT r.id FROM items JOIN responses r ON r.key = response WHERE items.id = ? AND r.owner = ?"

        def read(db: sqlite3.Connection) -> list[str | None]:
            found = (db.execute(statement, (item_id, owner or "")).fetchone() for item_id in item_ids)
            return [None if row is None else row[0] for row in found]

        return await self._database.read(read)

    async def delete(self, response_id: str) -> None:
        """With its events and items. One that runs is not stored again when it ends."""
        await self._database.write(lambda db: db.execute("DELETE FROM responses WHERE id = ?", (response_id,)))

    # Following

    async def events(self, response_id: str, number: int) -> tuple[list[ResponseEvent], bool]:
        """Rows of a response from that event on, and whether there may be more later."""

        def read(db: sqlite3.Connection) -> tuple[list[bytes], bool]:
            # Whether it runs is read first: of one that does not, the rows that are read then are the last ones.
            row = db.execute("SELECT key, writer FROM responses WHERE id = ?", (response_id,)).fetchone()
            if row is None:
                return [], False
            key, writer = row
            is_open = writer is not None and is_held(writer)
            statement = "SELECT event FROM events WHERE response = ? AND number >= ? ORDER BY number LIMIT ?"
            rows = db.execute(statement, (key, number, EVENTS_AT_ONCE)).fetchall()
            return [event for (event,) in rows], is_open or len(rows) == EVENTS_AT_ONCE

        rows, is_open = await self._database.read(read)
        return [_decode_event(event) for event in rows], is_open

    async def wait_beyond(self, response_id: str, number: int) -> None:
        """Until it has more events than that, has ended, or a fraction of a second has passed."""
        for _ in range(LOOKS):
            if self._look is None or self._look.done():  # one for all that wait
                self._look = asyncio.create_task(self._look_soon())
            num_events = (await asyncio.shield(self._look)).get(response_id)
            if num_events is None or num_events > number:
                return

    async def _look_soon(self) -> dict[str, int]:
        """Events of each response that runs."""
        await asyncio.sleep(LOOK_SECONDS)
        statement = "SELECT id, num_events FROM responses WHERE writer IS NOT NULL"
        return await self._database.read(lambda db: dict(db.execute(statement).fetchall()))

    def _make_room(self, db: sqlite3.Connection, now: float) -> None:
        db.execute("DELETE FROM responses WHERE created_at <= ?", (now - self._max_age,))
        for column, limit in self._limits.items():
            while (db.execute(f"SELECT sum({column}) FROM owners").fetchone()[0] or 0) > limit:
                db.execute(
                    "DELETE FROM responses WHERE key = (SELECT key FROM responses WHERE owner = "
                    f"(SELECT owner FROM owners ORDER BY {column} DESC LIMIT 1) "
                    "ORDER BY writer IS NOT NULL, created_at LIMIT 1)"
                )


def _value_of(stored: StoredResponse) -> bytes:
    value = _encode(stored)
    if len(value) > MAX_VALUE_BYTES:
        message = f"The response is longer than {MAX_VALUE_BYTES} bytes and cannot be stored: send store: false."
        raise ApiError(500, message, code="server_error")
    return value


def _items_of(stored: StoredResponse) -> list[str]:
    """Those that requests may refer to."""
    return [item.id for item in stored.response.output] if stored.response.status in HAS_ANSWER else []


def _num_bytes(value: bytes, items: Iterable[str]) -> int:
    return len(value) + sum(map(len, items))
