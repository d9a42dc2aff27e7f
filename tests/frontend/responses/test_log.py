"""The log of a response that runs: every reader at its own place, none of them held up by another."""

import asyncio

import pytest

from frontend.errors import ApiError
from frontend.protocol.response_events import ResponseCompleted, ResponseCreated, ResponseEvent, ResponseFailed
from frontend.protocol.responses import Response, ResponsesRequest
from frontend.responses.answer import new_response
from frontend.responses.log import ResponseLog


def some_response() -> Response:
    return new_response(ResponsesRequest(input="x"), "resp_1", "m")


def created() -> ResponseCreated:
    return ResponseCreated(response=some_response())


async def read(log: ResponseLog, start: int) -> list[ResponseEvent]:
    return [event async for event in log.read(start)]


def test_each_reader_has_its_own_place():
    async def scenario() -> None:
        log = ResponseLog()
        first, second, last = created(), created(), ResponseCompleted(response=some_response())
        log.append(first)
        stalled = log.read(0)
        assert await anext(stalled) is first
        async with asyncio.TaskGroup() as group:
            whole, rest, beyond = (group.create_task(read(log, start)) for start in (0, 1, 9))
            more = group.create_task(log.wait_beyond(1))
            await asyncio.sleep(0)  # all of them wait now
            log.append(second)
            assert await more
            log.append(last)
            log.end()
        assert whole.result() == [first, second, last]
        assert rest.result() == [second, last]
        assert beyond.result() == []
        assert [event async for event in stalled] == [second, last]
        assert not await log.wait_beyond(3)

    asyncio.run(scenario())


@pytest.mark.parametrize("events", [[], [created()]])
def test_a_log_whose_writer_failed_says_so(events):
    async def scenario() -> None:
        log = ResponseLog()
        for event in events:
            log.append(event)
        log.end()
        with pytest.raises(ApiError) as caught:
            await read(log, 0)
        assert caught.value.status == 500

    asyncio.run(scenario())


def test_a_failure_is_an_end():
    async def scenario() -> None:
        log = ResponseLog()
        log.append(ResponseFailed(response=some_response()))
        log.end()
        assert len(await read(log, 0)) == 1

    asyncio.run(scenario())
