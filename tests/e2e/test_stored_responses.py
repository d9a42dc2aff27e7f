"""Responses that one frontend stores and another one finds, on a running server with two of them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.e2e.test_openai_api import wait_for_metrics


@pytest.fixture
def connections(server: Server) -> Iterator[list[httpx.Client]]:
    """So many connections that the kernel has given each frontend some."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(httpx.Client(base_url=server.url, timeout=120)) for _ in range(16)]


def respond(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/responses", json={"temperature": 0, "max_output_tokens": 8, **fields})
    return answer.raise_for_status().json()


def test_every_frontend_finds_a_response(connections: list[httpx.Client]) -> None:
    first = respond(connections[0], input="What is a list?")
    for client in connections:
        assert client.get(f"/v1/responses/{first['id']}").raise_for_status().json() == first
    following = [respond(client, input="Go on.", previous_response_id=first["id"]) for client in connections[:4]]
    assert len({answer["output"][0]["content"][0]["text"] for answer in following}) == 1
    assert following[0]["usage"]["input_tokens"] > first["usage"]["total_tokens"]


def test_every_frontend_cancels_what_runs_in_the_background(server: Server, connections: list[httpx.Client]) -> None:
    for number, client in enumerate(connections[1:5]):
        running = respond(connections[0], input=f"Count {number}", background=True, max_output_tokens=1500)
        path = f"/v1/responses/{running['id']}"
        cancelled = client.post(f"{path}/cancel").raise_for_status().json()
        # A short answer may have ended by then; a cancel never brings back what has ended.
        assert cancelled["status"] in ("cancelled", "completed")
        wait_for_metrics(server, num_requests_running=0, num_requests_waiting=0)
        assert connections[5].get(path).json() == cancelled


def test_the_best_of_several_is_one_of_them(connections: list[httpx.Client]) -> None:
    fields = {"prompt": "The function", "max_tokens": 12, "seed": 5, "logprobs": 0, "ignore_eos": True}
    several = connections[0].post("/v1/completions", json={**fields, "n": 4}).raise_for_status().json()["choices"]
    best = connections[1].post("/v1/completions", json={**fields, "best_of": 4, "n": 2}).raise_for_status().json()

    def mean(choice: dict[str, Any]) -> float:
        return sum(choice["logprobs"]["token_logprobs"]) / 12

    ranked = sorted(several, key=mean, reverse=True)
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert best["usage"]["completion_tokens"] == 48
