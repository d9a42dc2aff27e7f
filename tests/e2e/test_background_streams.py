"""Responses in the background as streams, on a running server with two frontends: left, taken up again, cancelled."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.server import Server
from tests.e2e.test_openai_api import wait_for_metrics

NUM_CLIENTS = 12
"""Each has a connection of its own, so that the kernel gives both frontends some."""


@pytest.fixture
def clients(server: Server) -> Iterator[list[openai.OpenAI]]:
    clients = [server.client() for _ in range(NUM_CLIENTS)]
    yield clients
    for client in clients:
        client.close()


@pytest.mark.slow
def test_a_stream_that_was_cut_goes_on(server: Server, clients: list[openai.OpenAI]) -> None:
    """Whichever frontend is asked, while it runs and later: every event, once, with the number that it had."""
    for number, client in enumerate(clients[1:]):
        with clients[0].responses.create(
            model=server.model,
            input=f"Tell me about lists, {number}.",
            max_output_tokens=120,
            background=True,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            seen = [next(stream) for _ in range(8)]
        response_id = seen[0].response.id
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number))
        events = seen + rest
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type in ("response.completed", "response.incomplete")
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == last.response.output_text
        again = list(client.responses.retrieve(response_id, stream=True))
        assert [event.model_dump() for event in again] == [event.model_dump() for event in events]
        assert clients[0].responses.retrieve(response_id).model_dump() == last.response.model_dump()
    wait_for_metrics(server, num_requests_running=0, num_requests_waiting=0)


@pytest.mark.slow
def test_a_cancel_ends_the_stream(server: Server, clients: list[openai.OpenAI]) -> None:
    for number, client in enumerate(clients[1:6]):
        with clients[0].responses.create(
            model=server.model, input=f"Count {number}", max_output_tokens=1500, background=True, stream=True
        ) as stream:
            seen = [next(stream) for _ in range(6)]
            cancelled = client.responses.cancel(seen[0].response.id)
            seen += list(stream)
        # A short answer may have ended by then.
        assert seen[-1].response.status == cancelled.status
        assert cancelled.status in ("cancelled", "completed")
        assert seen[-1].type == f"response.{'completed' if cancelled.status == 'completed' else 'incomplete'}"
        again = list(client.responses.retrieve(seen[0].response.id, stream=True))
        assert [event.model_dump() for event in again] == [event.model_dump() for event in seen]
    wait_for_metrics(server, num_requests_running=0, num_requests_waiting=0)


def test_every_frontend_resolves_references(server: Server, clients: list[openai.OpenAI]) -> None:
    fields = {"model": server.model, "temperature": 0, "max_output_tokens": 8}
    question = {"role": "user", "content": "What is a list?"}
    first = clients[0].responses.create(input=[question], **fields)
    following = {"role": "user", "content": "Go on."}
    whole = clients[0].responses.create(input=[following], previous_response_id=first.id, **fields)
    reference = {"type": "item_reference", "id": first.output[0].id}
    for client in clients[:6]:
        answer = client.responses.create(input=[question, reference, following], **fields)
        assert answer.output_text == whole.output_text
        assert answer.usage.input_tokens == whole.usage.input_tokens
    clients[1].responses.delete(first.id)
    for client in clients[:6]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(input=[question, reference, following], **fields)
        assert caught.value.param == "input[1].id"


def test_a_reader_that_stalls_holds_up_nothing(server: Server) -> None:
    body = {"input": "Go", "max_output_tokens": 400, "background": True, "stream": True, "ignore_eos": True}
    with (
        httpx.Client(base_url=server.url, timeout=120) as client,
        client.stream(
            "POST", "/v1/responses", json={**body, "include": ["message.output_text.logprobs"], "top_logprobs": 20}
        ) as stalled,
    ):
        assert b"response.created" in next(stalled.iter_raw())  # reads no more than that
        wait_for_metrics(server, num_requests_running=0, num_requests_waiting=0)
