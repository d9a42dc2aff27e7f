"""Answers as streams of named events, the way `/v1/responses` and `/v1/messages` have them: no [DONE] at the end."""

from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import msgspec
from sanic import Request

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.sse import EventStream, KeepAlive
from frontend.streaming import answering, first_piece


class EventFormat(Protocol):
    """How a protocol writes its events; each is a struct whose tag is its name."""

    def start(self) -> Iterable[msgspec.Struct]:
        """What comes before the output."""

    def output(self, piece: OutputPiece) -> Iterable[msgspec.Struct]:
        """A piece that has output."""

    def end(self, last: OutputPiece) -> AsyncIterator[msgspec.Struct]:
        """What comes after the output; `last` has the reason of the end, and tokens whose text has been sent."""

    def failure(self, error: ApiError) -> Iterable[msgspec.Struct]:
        """The end of an answer that failed midway."""


async def stream_events(
    request: Request, generation: Generation, form: EventFormat, keep_alive: KeepAlive, headers: dict[str, str]
) -> None:
    """Streams the one choice of a generation to its end. What fails before the first token raises."""

    async def fail(stream: EventStream, error: ApiError) -> None:
        await stream.send_named(form.failure(error))

    first = await first_piece(generation)
    async with answering(request, keep_alive, headers, fail, EventStream.end) as stream:
        await _send_all(stream, first, generation, form)


async def _send_all(
    stream: EventStream, first: tuple[int, OutputPiece] | None, generation: Generation, form: EventFormat
) -> None:
    await stream.send_named(form.start())
    held = OutputPiece()
    item = await anext(generation, None) if first is None else first
    while item is not None:
        held.add(item[1])
        if held.has_output:
            await stream.send_named(form.output(held))
            held = OutputPiece(finish_reason=held.finish_reason, stop_reason=held.stop_reason)
        item = await anext(generation, None)
    async for event in form.end(held):
        await stream.send_named([event])
