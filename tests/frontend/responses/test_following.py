"""Responses in the background as streams: followed, left, taken up again, cancelled; here and in another process."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import openai
import pytest

from benchmarks.stub_core import Reply
from engine_core.config.engine_config import ServeConfig
from engine_core.ipc.messages import ERROR_OVERLOADED, AbortRequest, AddRequest
from frontend.protocol.response_events import ResponseEvent
from frontend.responses import background
from frontend.responses.background import BackgroundResponse
from frontend.responses.store import MAX_VALUE_BYTES
from tests.frontend.responses.test_responses import PATH, TEXT, named_events, respond
from tests.frontend.support import MODEL, FrontendProcess, Setup, running_setup
from tests.frontend.test_http_errors import error_of

WORDS = "one two three four five six seven eight"


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Setup, FrontendProcess]]:
    """A frontend that makes responses, and another one before the same core."""
    with running_setup(folder, num_frontends=2, max_body_bytes=2**25) as own:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=ServeConfig)
        other = FrontendProcess(folder, config)
        try:
            other.wait_ready()
            yield own, other
        finally:
            own.core.resume()
            other.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setup, httpx.Client]]:
    """The one, and a client of the other."""
    with pair(tmp_path_factory.mktemp("run")) as (own, other), httpx.Client(base_url=other.url, timeout=30) as client:
        yield own, client


@pytest.fixture(params=["here", "elsewhere"])
def both(request: pytest.FixtureRequest, two: tuple[Setup, httpx.Client]) -> Iterator[tuple[Setup, httpx.Client]]:
    """The frontend that makes a response, and a client of it or of the other one."""
    own, other = two
    own.core.resume()
    own.forget()
    yield own, own.http if request.param == "here" else other
    own.core.resume()


@contextlib.contextmanager
def following(client: httpx.Client, method: str, path: str, body: Any = None) -> Iterator[Iterator[dict[str, Any]]]:
    """Events as they come. Leaving it hangs up."""
    with client.stream(method, path, json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: "))


def begin(setup: Setup, count: int, num_steps: int, **fields: Any) -> list[dict[str, Any]]:
    """Starts a response as a stream in the background, lets the engine take steps, and hangs up after some events.

    The fifth one is the first text, which may be that of several steps.
    """
    setup.core.pause()
    setup.core.allow_steps(num_steps)
    body = {"model": MODEL, "input": "Hi", "background": True, "stream": True, **fields}
    with following(setup.http, "POST", PATH, body) as events:
        return [next(events) for _ in range(count)]


def path_of(events: list[dict[str, Any]]) -> str:
    return f"{PATH}/{events[0]['response']['id']}"


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


@pytest.mark.slow
def test_it_runs_on_and_is_taken_up_again(both):
    setup, client = both
    setup.say(WORDS)
    seen = begin(setup, 5, 3)
    assert [event["sequence_number"] for event in seen] == list(range(5))
    assert seen[0]["response"]["status"] == "in_progress"
    assert seen[0]["response"]["background"] is True
    path = path_of(seen)
    with following(client, "GET", f"{path}?stream=true&starting_after=3") as events:
        assert next(events) == seen[4]
        setup.core.resume()
        rest = list(events)
    assert [event["sequence_number"] for event in rest] == list(range(5, 5 + len(rest)))
    assert rest[-1]["type"] == "response.completed"
    assert rest[-1]["response"]["output"][0]["content"][0]["text"] == WORDS
    # Ended, it is told again from what is kept, with the numbers that it had.
    again = named_events(client.get(f"{path}?stream=true"))
    assert again == seen + rest
    assert text_of(again) == WORDS
    assert client.get(path).json() == again[-1]["response"]
    for start in (0, 4, len(again) - 2, len(again) - 1, len(again) + 5):
        assert named_events(client.get(f"{path}?stream=true&starting_after={start}")) == again[start + 1 :]
    assert setup.core.received(AbortRequest) == []


def test_the_first_stream_is_whole(both):
    setup, client = both
    setup.say(TEXT)
    events = named_events(respond(setup, background=True, stream=True))
    assert events[-1]["type"] == "response.completed"
    assert text_of(events) == TEXT
    assert named_events(client.get(f"{path_of(events)}?stream=true")) == events


@pytest.mark.parametrize("fields", [{"stream": True}, {"background": True}, {}])
def test_any_stored_response_can_be_streamed(both, fields):
    setup, client = both
    setup.say(TEXT)
    answer = respond(setup, include=["message.output_text.logprobs"], top_logprobs=1, **fields)
    body = named_events(answer)[-1]["response"] if "stream" in fields else answer.json()
    events = named_events(client.get(f"{PATH}/{body['id']}?stream=true"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert text_of(events) == TEXT
    if "stream" in fields:
        assert events == named_events(answer)


def test_others_see_how_far_it_is(both):
    setup, client = both
    setup.say(WORDS)
    path = path_of(begin(setup, 5, 3))
    with following(client, "GET", f"{path}?stream=true") as events:
        seen = [next(events) for _ in range(5)]  # while the engine stands still
        assert text_of(seen)
        assert client.get(path).json()["status"] == "in_progress"
        setup.core.resume()
        assert text_of(seen + list(events)) == WORDS


@pytest.mark.parametrize(("count", "num_steps"), [(2, 0), (5, 3)])
def test_a_cancel_ends_every_stream(both, count, num_steps):
    setup, client = both
    setup.say(WORDS, endless=True)
    seen = begin(setup, count, num_steps)
    path = path_of(seen)
    with (
        following(setup.http, "GET", f"{path}?stream=true") as here,
        following(client, "GET", f"{path}?stream=true&starting_after=1") as there,
    ):
        early = [next(here) for _ in range(len(seen))]
        cancelled = client.post(f"{path}/cancel", json={}).json()
        assert cancelled["status"] == "cancelled"
        here_all, there_all = early + list(here), list(there)
    last = here_all[-1]
    assert (last["type"], last["response"]) == ("response.incomplete", cancelled)
    assert here_all[: len(seen)] == seen
    assert [event["sequence_number"] for event in here_all] == list(range(len(here_all)))
    assert there_all == here_all[2:]
    for reader in (setup.http, client):
        assert named_events(reader.get(f"{path}?stream=true")) == here_all
        assert named_events(reader.get(f"{path}?stream=true&starting_after={last['sequence_number']}")) == []
    assert setup.core.num_running == 0


def test_a_failure_is_its_end(both):
    setup, client = both
    setup.core.script = lambda add: Reply(error=(ERROR_OVERLOADED, "The queue is full.", 1.0))
    events = named_events(respond(setup, background=True, stream=True))
    assert [event["type"].removeprefix("response.") for event in events] == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"]["code"] == "overloaded"
    assert named_events(client.get(f"{path_of(events)}?stream=true")) == events


def test_a_deletion_ends_it_and_it_does_not_come_back(both):
    setup, client = both
    setup.say(WORDS, endless=True)
    path = path_of(begin(setup, 4, 2))
    with following(client, "GET", f"{path}?stream=true") as events:
        next(events)
        assert client.delete(path).json()["deleted"] is True
        assert list(events)[-1]["type"] == "response.failed"
    setup.core.resume()
    setup.core.wait_for(lambda core: core.num_running == 0)
    for reader in (setup.http, client):
        assert error_of(reader.get(path), 404)
        assert error_of(reader.get(f"{path}?stream=true"), 404)


def test_a_reader_that_hangs_up_ends_nothing(both):
    setup, client = both
    setup.say(WORDS)
    path = path_of(begin(setup, 3, 1))
    for _ in range(3):
        with following(client, "GET", f"{path}?stream=true") as events:
            next(events)
    setup.core.resume()
    events = named_events(client.get(f"{path}?stream=true"))
    assert (events[-1]["type"], text_of(events)) == ("response.completed", WORDS)
    assert setup.core.received(AbortRequest) == []


@pytest.mark.slow
def test_what_is_too_long_to_be_kept_has_failed(both):
    setup, client = both
    setup.say(WORDS * 10)
    padding = {"a": "x" * (MAX_VALUE_BYTES - 30_000)}  # leaves room for the beginning, not for all of the answer
    events = named_events(respond(setup, background=True, stream=True, metadata=padding, top_logprobs=20))
    assert events[-1]["type"] == "response.failed"
    assert "store: false" in events[-1]["response"]["error"]["message"]
    path = path_of(events)
    assert client.get(path).json() == events[-1]["response"]
    number = events[-1]["sequence_number"]
    assert named_events(client.get(f"{path}?stream=true&starting_after={number - 1}")) == events[-1:]


@pytest.mark.slow
def test_a_frontend_that_drains_lets_its_followers_end(tmp_path):
    with pair(tmp_path) as (own, other), httpx.Client(base_url=other.url, timeout=30) as client:
        own.say(WORDS)
        seen = begin(own, 5, 3)
        with following(client, "GET", f"{path_of(seen)}?stream=true") as events:
            assert [next(events) for _ in range(5)] == seen
            other.child.drain(20)
            with httpx.Client(base_url=other.url, timeout=30) as asking:
                while asking.get("/ready").status_code == 200:
                    pass
            own.core.resume()
            assert list(events)[-1]["type"] == "response.completed"
        assert other.wait_exit() == 0


@pytest.mark.slow
def test_one_that_is_late_has_failed(tmp_path):
    with pair(tmp_path) as (own, other), httpx.Client(base_url=other.url, timeout=30) as client:
        own.say(WORDS, endless=True)
        path = path_of(begin(own, 5, 3))
        with following(client, "GET", f"{path}?stream=true") as events:
            next(events)
            own.frontend.child.drain(0.2)
            last = list(events)[-1]
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "shutting_down")
        assert own.frontend.wait_exit() == 0
        assert client.get(path).json() == last["response"]
        assert named_events(client.get(f"{path}?stream=true"))[-1] == last


def test_nobody_elses_events(both):
    setup, client = both
    setup.say("secret")
    mine, theirs = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}
    body = {"input": "x", "background": True, "stream": True}
    path = path_of(named_events(setup.post(PATH, body, headers=mine)))
    assert text_of(named_events(client.get(f"{path}?stream=true", headers=mine))) == "secret"
    for headers in (theirs, {}):
        assert error_of(client.get(f"{path}?stream=true", headers=headers), 404)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=perhaps", "stream"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=99999999999999999999", "starting_after"),
        ("starting_after=3", "starting_after"),
        ("stream=false&starting_after=3", "starting_after"),
    ],
)
def test_a_wrong_query_is_named(setup, query, param):
    setup.say("x")
    body = respond(setup).json()
    assert error_of(setup.http.get(f"{PATH}/{body['id']}?{query}"), 400)["param"] == param


def test_without_a_stream_there_is_the_response(setup):
    setup.say("x")
    body = respond(setup).json()
    path = f"{PATH}/{body['id']}"
    for query in ("", "?stream=false", "?include_obfuscation=true&other=1"):
        assert setup.http.get(path + query).json() == body
    assert setup.http.head(f"{path}?stream=true").status_code == 200
    assert error_of(setup.http.get(f"{PATH}/resp_none?stream=true"), 404)


def test_the_openai_package(setup):
    setup.say(WORDS)
    setup.core.pause()
    setup.core.allow_steps(3)
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        with client.responses.create(model=MODEL, input="Hi", background=True, stream=True) as stream:
            seen = [next(stream) for _ in range(5)]
        response_id = seen[0].response.id
        setup.core.resume()
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number))
        assert [event.sequence_number for event in seen + rest] == list(range(len(seen) + len(rest)))
        assert rest[-1].type == "response.completed"
        assert rest[-1].response.output_text == WORDS
        assert len(setup.core.received(AddRequest)) == 1
        with client.responses.stream(response_id=response_id, starting_after=3) as stream:
            assert [event.sequence_number for event in stream] == list(range(4, len(seen) + len(rest)))
            assert stream.get_final_response().output_text == WORDS


def test_a_client_that_hangs_up_while_the_beginning_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored as begun is generated, and nothing of it is left in the process."""
    saved, generated = [], []

    async def run() -> None:
        is_stored = asyncio.Event()

        async def begin_stored(stored: object) -> None:
            saved.append(stored)
            await is_stored.wait()

        async def events_of(*_: object) -> AsyncIterator[ResponseEvent]:
            generated.append(True)
            return
            yield

        monkeypatch.setattr(background, "events_of", events_of)
        tasks: list[asyncio.Task[None]] = []
        state: Any = SimpleNamespace(responses=SimpleNamespace(begin=begin_stored))
        state.start_background = lambda work: tasks.append(asyncio.create_task(work))
        closed = asyncio.Event()
        generation: Any = SimpleNamespace(close=closed.set)
        writer: Any = None
        stored: Any = SimpleNamespace(response=SimpleNamespace(id="resp_1"))
        running = BackgroundResponse(stored, writer, generation, state)
        handler = asyncio.create_task(running.begin())
        while not saved:
            await asyncio.sleep(0)
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler
        is_stored.set()
        await tasks[0]
        assert closed.is_set()

    asyncio.run(run())
    assert len(saved) == 1
    assert generated == [True]
