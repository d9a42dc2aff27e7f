"""Streams (points 1 to 9 of docs/conformance.md), sampling (27) and tools (29 to 36), asked of a running server."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.e2e.test_conformance import USER, http, post
from tests.e2e.test_tools import QUESTION, WEATHER
from tests.frontend.support import deltas_of, events_of

__all__ = ["http"]
CHAT = "/v1/chat/completions"
TOOLS: dict[str, Any] = {"messages": [QUESTION], "tools": [WEATHER], "temperature": 0, "max_tokens": 96}


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    """The events, the last of which is [DONE]."""
    fields = {"messages": USER, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    events = events_of(http.post(CHAT, json={**fields, "stream": True}).raise_for_status())
    assert events[-1] == "[DONE]"
    return events


def test_1_one_write_per_event(server: Server) -> None:
    """As it comes from the socket: each piece of the chunked body is one event."""
    url = httpx.URL(server.url)
    body = json.dumps({"messages": USER, "max_tokens": 6, "stream": True, "ignore_eos": True})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall((head + body).encode())
        data = b""
        while piece := connection.recv(65536):
            data += piece
    rest, pieces = data.partition(b"\r\n\r\n")[2], []
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in pieces)
    assert all(piece.count(b"\n\n") == 1 for piece in pieces)
    assert pieces[-1] == b"data: [DONE]\n\n"


def test_2_to_4_the_shape_of_a_stream(http: httpx.Client) -> None:
    chunks = stream(http)[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert stream(http)[0]["id"] != chunks[0]["id"]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[0]["delta"]["content"]
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["delta"] == {}


def test_5_to_7_usage_where_it_was_asked_for(http: httpx.Client) -> None:
    *chunks, last, _ = stream(http, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert all("usage" not in chunk for chunk in stream(http)[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in stream(http, stream_options=options)[:-1]]
    assert counts == sorted(counts)
    assert (counts[0] < counts[-1], counts[-1]) == (True, 12)


def test_8_and_9_every_choice_is_complete_and_as_it_is_whole(http: httpx.Client) -> None:
    whole = post(http, CHAT, messages=USER, max_tokens=12, temperature=0, ignore_eos=True, n=3)["choices"]
    events = stream(http, n=3)
    for index, choice in enumerate(whole):
        deltas = deltas_of(events, index)
        assert "".join(delta["delta"].get("content", "") for delta in deltas) == choice["message"]["content"]
        assert deltas[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_27_a_seed_repeats(http: httpx.Client) -> None:
    fields = {"messages": USER, "max_tokens": 12, "temperature": 2.0}
    texts = [
        post(http, CHAT, **fields, seed=seed)["choices"][0]["message"]["content"] for seed in (3, 3, 4)
    ]  # one after the other, with the prompt cached or not
    assert texts[0] == texts[1] != texts[2]


def test_29_to_31_and_35_a_call(http: httpx.Client) -> None:
    choice = post(http, CHAT, **TOOLS)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert isinstance(call["function"]["arguments"], str)
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert choice["message"]["refusal"] is None
    deltas = deltas_of(events_of(http.post(CHAT, json={**TOOLS, "stream": True})))
    calls = [call for delta in deltas for call in delta["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls if call.get("id")] == [0]
    assert "".join(call["function"]["arguments"] for call in calls) == call["function"]["arguments"]
    assert not any(delta["delta"].get("content") for delta in deltas)
    assert all(delta["delta"].get("tool_calls", True) for delta in deltas), "an empty list"
    plain = post(http, CHAT, **{**TOOLS, "messages": USER})["choices"][0]["message"]
    assert "tool_calls" not in plain
    assert "<tool_call>" not in plain["content"]


def test_32_and_34_fewer_calls_where_that_is_wanted(http: httpx.Client) -> None:
    both = {"role": "user", "content": "What is the weather in Paris and in Rome?"}
    one = post(http, CHAT, **{**TOOLS, "messages": [both], "parallel_tool_calls": False})["choices"][0]["message"]
    assert len(one.get("tool_calls", [])) <= 1
    none = post(http, CHAT, **TOOLS, tool_choice="none")["choices"][0]
    assert "tool_calls" not in none["message"]
    assert none["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("content", [None, "", "I look.", [{"type": "text", "text": "I look."}]])
def test_36_messages_of_tools(http: httpx.Client, content: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    said = {"role": "assistant", "content": content, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "clear"}'}
    answer = post(http, CHAT, **{**TOOLS, "messages": [QUESTION, said, result]})
    assert answer["choices"][0]["message"]["content"]
