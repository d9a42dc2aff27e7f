"""Event streams in times of silence, with the connection played by the test."""

import asyncio
import time
from typing import Any

import pytest

from frontend.output_processor import OutputPiece
from frontend.parsers.events import Content
from frontend.sse import PING_SECONDS, STALLED_READER_SECONDS, EventStream, KeepAlive
from frontend.streaming import stream_answer


class Connection:
    """Both Sanic's response and its transport, as far as an event stream knows them."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.unsent_bytes = 0
        self.aborted = False
        self.transport = self

    async def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def respond(self, **options: Any) -> "Connection":
        return self

    async def eof(self) -> None:
        self.sent.append(b"")

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.aborted = True


def after(seconds: float, unsent_bytes: int = 0) -> Connection:
    """A stream that sent one event, looked after so many seconds later."""
    connection: Any = Connection()

    async def run() -> None:
        stream = EventStream(connection, connection, KeepAlive())
        await stream.send({"a": 1})
        connection.unsent_bytes = unsent_bytes
        await stream.look_after(time.monotonic() + seconds)

    asyncio.run(run())
    return connection


def test_a_silence_is_filled_with_a_comment():
    assert after(PING_SECONDS - 1).sent == [b'data: {"a":1}\n\n']
    assert after(PING_SECONDS + 1).sent[1:] == [b": ping\n\n"]


def test_a_stream_that_fails_takes_no_other_with_it(caplog):
    broken: Any = Connection()
    broken.get_write_buffer_size = None  # calling it fails
    connection: Any = Connection()

    async def run() -> None:
        keep_alive = KeepAlive()
        for each in (broken, connection, broken):
            keep_alive.add(EventStream(each, each, keep_alive))
        for _ in range(2):
            await keep_alive.look_after_all(time.monotonic() + PING_SECONDS + 1)

    asyncio.run(run())
    assert connection.sent == [b": ping\n\n"] * 2
    assert len(caplog.records) == 2


def test_a_reader_that_takes_nothing_is_cut_in_the_end():
    assert after(PING_SECONDS + 1, unsent_bytes=9).sent[1:] == []
    assert not after(STALLED_READER_SECONDS - 1, unsent_bytes=9).aborted
    assert after(STALLED_READER_SECONDS + 1, unsent_bytes=9).aborted


class FailingGeneration:
    """One piece of text, then a defect."""

    def __init__(self) -> None:
        self._pieces = [OutputPiece(parts=[Content("a")])]

    async def __anext__(self) -> tuple[int, OutputPiece]:
        if not self._pieces:
            raise KeyError("a defect")
        return 0, self._pieces.pop()

    def hands_on_to(self, is_held_up: Any) -> None:
        """Nothing waits here."""


class TextChunks:
    def chunks(self, choice: int, piece: OutputPiece, usage: Any) -> list[Any]:
        return [{"text": piece.text}]


def test_a_defect_midway_is_told_to_the_client_and_goes_on():
    connection: Any = Connection()
    generation: Any = FailingGeneration()
    form: Any = TextChunks()
    with pytest.raises(KeyError, match="a defect"):
        asyncio.run(stream_answer(connection, generation, form, None, KeepAlive(), {}))
    text, error, done, end = connection.sent
    assert text == b'data: {"text":"a"}\n\n'
    assert b'"internal_error"' in error
    assert (done, end) == (b"data: [DONE]\n\n", b"")
