"""Answers as streams of named events, the way `/v1/responses` and `/v1/messages` have them: no [DONE] at the end."""

from collections.abc import AsyncIterator, Iterable
from typing import Protocol, TypeVar

import msgspec
from sanic import Request

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.sse import EventStream, KeepAlive
from frontend.streaming import answering, first_piece

Event = TypeVar("Event", bound=msgspec.Struct, covariant=True)


class EventFormat(Protocol[Event]):
    """How a protocol writes its events; each is a struct whose tag is its name."""

    def start(self) -> Iterable[Event]:
        """What comes before the output."""

    def output(self, piece: OutputPiece) -> Iterable[Event]:
        """A piece that has output."""

    def end(self, last: OutputPiece) -> AsyncIterator[Event]:
        """What comes after the output; `last` has the reason of the end, and tokens whose text has been sent."""

    def failure(self, error: ApiError) -> Iterable[Event]:
        """The end of an answer that failed midway."""


async def stream_events(
    request: Request, generation: Generation, form: EventFormat[Event], keep_alive: KeepAlive, headers: dict[str, str]
) -> None:
    """Streams the one choice of a generation to its end. What fails before the first token raises."""

    async def fail(stream: EventStream, error: ApiError) -> None:
        await stream.send_named(form.failure(error))

    first = await first_piece(generation)
    async with answering(request, keep_alive, headers, fail, EventStream.end) as stream:
        generation.hands_on_to(stream.is_held_up)
        async for event in events_of(first, generation, form):
            await stream.send_named([event])


async def events_of(
    first: tuple[int, OutputPiece] | None, generation: Generation, form: EventFormat[Event]
) -> AsyncIterator[Event]:
    """All events of a generation whose first piece may have been taken already."""
    for event in form.start():
        yield event
    held = OutputPiece()
    item = await anext(generation, None) if first is None else first
    while item is not None:
        held.add(item[1])
        if held.has_output:
            for event in form.output(held):
                yield event
            held = OutputPiece(finish_reason=held.finish_reason, stop_reason=held.stop_reason)
        item = await anext(generation, None)
    async for event in form.end(held):
        yield event
