"""The events of a stored response from any number on, whether it has ended, runs here, or runs in another process."""

import asyncio
import time
from collections.abc import AsyncIterator

from sanic import Request

from frontend.errors import ApiError
from frontend.protocol.response_events import ResponseEvent, ResponseFailed
from frontend.protocol.stored_responses import Progress, StoredResponse
from frontend.responses.answer import fail_response
from frontend.responses.background import PAUSE_SECONDS, pause_after
from frontend.responses.replay import last_event, replay
from frontend.responses.stored import HAS_ANSWER, load_progress, load_response
from frontend.sse import EventStream
from frontend.state import FrontendState
from frontend.streaming import answering

_MOST_WAITS = 8
"""For the last progress of a cancelled response, whose frontend may be gone."""


async def stream_response(
    request: Request, stored: StoredResponse, start: int, state: FrontendState, headers: dict[str, str]
) -> None:
    """Sends its events from the one numbered `start` on, to its end. Hanging up changes nothing for the response."""
    events = follow(stored, start, state)
    number = start

    async def fail(stream: EventStream, error: ApiError) -> None:
        fail_response(stored.response, error)
        await stream.send_named((ResponseFailed(response=stored.response, sequence_number=number),))

    async with answering(request, state.keep_alive, headers, fail, EventStream.end) as stream:
        await stream.begin()
        async for event in events:
            await stream.send_named((event,))
            number = event.sequence_number + 1


def follow(stored: StoredResponse, start: int, state: FrontendState) -> AsyncIterator[ResponseEvent]:
    """Numbers only grow. Iterating raises a 404 when the response is forgotten meanwhile."""
    log = state.response_logs.get(stored.response.id)
    return _follow_stored(stored, start, state) if log is None else log.read(start)


async def _follow_stored(stored: StoredResponse, start: int, state: FrontendState) -> AsyncIterator[ResponseEvent]:
    number = start
    while stored.response.status == "in_progress":
        started = time.monotonic()
        progress, is_running = await load_progress(state.client, stored.response.id)
        news = _news(stored, progress, number)
        seconds = time.monotonic() - started  # without what a slow reader takes
        for event in news:
            yield event
            number = event.sequence_number + 1
        if is_running:
            await pause_after(seconds)
        else:
            stored = await load_response(state.client, stored.response.id, stored.owner)
    for event in await _rest(stored, number, state):
        yield event


def _news(stored: StoredResponse, progress: Progress | None, number: int) -> list[ResponseEvent]:
    """The events that a progress has from that number on."""
    if progress is None:
        progress = Progress(items=[], deltas=[], is_last=False)
    return [event for event in replay(stored.response, progress) if event.sequence_number >= number]


async def _rest(stored: StoredResponse, number: int, state: FrontendState) -> list[ResponseEvent]:
    """All events of a response that has ended, from that number on."""
    progress = await _last_progress(stored, state)
    events = list(replay(stored.response, progress))
    last = last_event(stored.response)
    # Of one that was left by its frontend there may have been more events than are known: its end comes after them.
    last.sequence_number = len(events) if progress.is_last else max(len(events), number)
    return [event for event in (*events, last) if event.sequence_number >= number]


async def _last_progress(stored: StoredResponse, state: FrontendState) -> Progress:
    response = stored.response
    if response.status in HAS_ANSWER:
        return Progress(items=response.output, deltas=stored.deltas, is_last=True)
    progress, _ = await load_progress(state.client, response.id)
    for _ in range(_MOST_WAITS if response.status == "cancelled" else 0):
        if progress is not None and progress.is_last:
            break
        await asyncio.sleep(PAUSE_SECONDS)
        progress, _ = await load_progress(state.client, response.id)
    return progress or Progress(items=[], deltas=[], is_last=False)
