"""A response as a stream of events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import count

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.protocol import response_events as events
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import Response
from frontend.response_answer import fail_response, finish_response
from frontend.response_output import OutputWriter


class ResponseStream:
    """`keep` is called with the finished response before a client hears of it."""

    def __init__(
        self,
        response: Response,
        writer: OutputWriter,
        generation: Generation,
        keep: Callable[[Response], Awaitable[None]],
    ) -> None:
        self._response = response
        self._writer = writer
        self._generation = generation
        self._keep = keep
        self._numbers = count()

    def start(self) -> Iterator[ResponseEvent]:
        yield from self._numbered((events.ResponseCreated(response=self._response),))
        yield from self._numbered((events.ResponseInProgress(response=self._response),))

    def output(self, piece: OutputPiece) -> Iterator[ResponseEvent]:
        return self._numbered(self._writer.push(piece))

    async def end(self, last: OutputPiece) -> AsyncIterator[ResponseEvent]:
        for event in (*self.output(last), *self._numbered(self._writer.end())):
            yield event
        response = self._response
        finish_response(response, self._writer, self._generation)
        await self._keep(response)
        kind = events.ResponseCompleted if response.status == "completed" else events.ResponseIncomplete
        for event in self._numbered((kind(response=response),)):
            yield event

    def failure(self, error: ApiError) -> Iterator[ResponseEvent]:
        fail_response(self._response, error)
        return self._numbered((events.ResponseFailed(response=self._response),))

    def _numbered(self, made: Iterable[ResponseEvent]) -> Iterator[ResponseEvent]:
        for event in made:
            event.sequence_number = next(self._numbers)
            yield event
