"""The events of a stored response from any number on, whether it has ended or runs, here or in another process."""

from collections.abc import AsyncIterator

from sanic import Request

from frontend.errors import ApiError
from frontend.protocol.response_events import ResponseEvent, ResponseFailed
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import fail_response
from frontend.responses.replay import last_event, replay
from frontend.responses.store import HAS_ANSWER, ResponseStore
from frontend.sse import EventStream
from frontend.state import FrontendState
from frontend.streaming import answering


async def stream_response(
    request: Request, stored: StoredResponse, start: int, state: FrontendState, headers: dict[str, str]
) -> None:
    """Sends its events from the one numbered `start` on, to its end. Hanging up changes nothing for the response."""
    events = follow(stored, start, state.responses)
    number = start

    async def fail(stream: EventStream, error: ApiError) -> None:
        fail_response(stored.response, error)
        await stream.send_named((ResponseFailed(response=stored.response, sequence_number=number),))

    async with answering(request, state.keep_alive, headers, fail, EventStream.end) as stream:
        await stream.begin()
        async for event in events:
            await stream.send_named((event,))
            number = event.sequence_number + 1


async def follow(stored: StoredResponse, start: int, store: ResponseStore) -> AsyncIterator[ResponseEvent]:
    """Numbers only grow. Iterating raises a 404 when the response is forgotten meanwhile."""
    number = start
    if stored.response.status not in HAS_ANSWER:
        # The first events follow from the response; the last one is told of below.
        for event in replay(stored.response, [], []):
            if event.sequence_number >= start:
                yield event
                number = event.sequence_number + 1
        is_open = True
        while is_open:
            news, is_open = await store.events(stored.response.id, number)
            for event in news:
                yield event
                number = event.sequence_number + 1
            if is_open and not news:
                await store.wait_beyond(stored.response.id, number)
        stored = await store.load(stored.response.id, stored.owner)
    for event in _rest(stored, number):
        if event.sequence_number >= number:
            yield event


def _rest(stored: StoredResponse, number: int) -> list[ResponseEvent]:
    """Of a response that has ended: all events where it has an answer, else the last one."""
    last = last_event(stored.response)
    if stored.response.status in HAS_ANSWER:
        events = list(replay(stored.response, stored.response.output, stored.deltas))
        last.sequence_number = len(events)
        return [*events, last]
    # Of one that was left by its frontend there may have been more events than are known: its end comes after them.
    last.sequence_number = number if stored.num_events is None else stored.num_events
    return [last]
