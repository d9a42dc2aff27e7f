"""A response as a stream of events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import count

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.protocol import response_events as events
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import Response
from frontend.responses.answer import fail_response, finish_response
from frontend.responses.output import OutputWriter
from frontend.responses.replay import begun_response, last_event


class ResponseStream:
    """`keep` is called with the finished response before a client hears of it, and says which response to tell of."""

    def __init__(
        self,
        response: Response,
        writer: OutputWriter,
        generation: Generation,
        keep: Callable[[Response], Awaitable[Response]],
    ) -> None:
        self._response = response
        self._writer = writer
        self._generation = generation
        self._keep = keep
        self._numbers = count()

    def start(self) -> Iterator[ResponseEvent]:
        begun = begun_response(self._response)  # events may be read when it has ended
        return self._numbered((events.ResponseCreated(response=begun), events.ResponseInProgress(response=begun)))

    def output(self, piece: OutputPiece) -> Iterator[ResponseEvent]:
        return self._numbered(self._writer.push(piece))

    async def end(self, last: OutputPiece) -> AsyncIterator[ResponseEvent]:
        for event in (*self.output(last), *self._numbered(self._writer.end())):
            yield event
        finish_response(self._response, self._writer, self._generation)
        yield self.ended(await self._keep(self._response))

    def failure(self, error: ApiError) -> Iterator[ResponseEvent]:
        fail_response(self._response, error)
        yield self.ended(self._response)

    def ended(self, response: Response) -> ResponseEvent:
        """The last event."""
        return next(self._numbered((last_event(response),)))

    def _numbered(self, made: Iterable[ResponseEvent]) -> Iterator[ResponseEvent]:
        for event in made:
            event.sequence_number = next(self._numbers)
            yield event
