"""Answers as event streams: when headers go out, which pieces become chunks, and how failures look midway."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from sanic import Request

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.protocol.common import StreamOptions, Usage
from frontend.sse import PING_SECONDS, EventStream, KeepAlive

ChunkUsage = Usage | UnsetType | None


class ChunkFormat(Protocol):
    """How a protocol writes its chunks."""

    def chunks(self, choice: int, piece: OutputPiece, usage: ChunkUsage) -> Iterable[msgspec.Struct]:
        """The chunks for a piece that has output or an end."""

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The one after the last choice has ended."""


async def stream_answer(
    request: Request,
    generation: Generation,
    form: ChunkFormat,
    options: StreamOptions | None,
    keep_alive: KeepAlive,
    headers: dict[str, str],
) -> None:
    """Streams a generation to its end. What fails before the first token raises; later failures become an event."""

    async def fail(stream: EventStream, error: ApiError) -> None:
        await stream.send(error.body())

    first = await first_piece(generation)
    async with answering(request, keep_alive, headers, fail, EventStream.done) as stream:
        generation.hands_on_to(stream.is_held_up)
        await _send_all(stream, first, generation, form, options)


@contextlib.asynccontextmanager
async def answering(
    request: Request,
    keep_alive: KeepAlive,
    headers: dict[str, str],
    fail: Callable[[EventStream, ApiError], Awaitable[None]],
    end: Callable[[EventStream], Awaitable[None]],
) -> AsyncIterator[EventStream]:
    """A stream that ends by `end` however its body does. What fails there becomes what `fail` writes."""
    stream = await EventStream.open(request, keep_alive, headers)
    try:
        try:
            yield stream
        except ApiError as error:
            await fail(stream, error)
        except Exception:  # goes on to the process's entry, which can no longer answer: only an event can
            await fail(stream, ApiError(500, "The server failed while it answered.", code="internal_error"))
            await end(stream)
            raise
        await end(stream)
    finally:
        stream.close()


async def first_piece(generation: Generation) -> tuple[int, OutputPiece] | None:
    """Waits a while for the first token, so that a request that cannot be served gets a status of its own."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            return await anext(generation)
    except TimeoutError:
        return None


async def _send_all(
    stream: EventStream,
    first: tuple[int, OutputPiece] | None,
    generation: Generation,
    form: ChunkFormat,
    options: StreamOptions | None,
) -> None:
    include_usage = bool(options and options.include_usage)
    continuous = bool(include_usage and options and options.continuous_usage_stats)
    held: dict[int, OutputPiece] = {}
    if first is None:
        await stream.ping()
        first = await anext(generation, None)
    item: Any = first
    while item is not None:
        choice, piece = item
        earlier = held.pop(choice, None)
        if earlier is not None:
            earlier.add(piece)
            piece = earlier
        if piece.has_output or piece.finish_reason is not None:
            usage = generation.usage() if continuous else None if include_usage else UNSET
            for chunk in form.chunks(choice, piece, usage):
                await stream.send(chunk)
        else:
            # A token without text of its own (part of a character, or of what may become a stop string) waits for
            # the next: an event without text would look like a token to whoever counts them.
            held[choice] = piece
        item = await anext(generation, None)
    if include_usage:
        await stream.send(form.usage_chunk(generation.usage()))
