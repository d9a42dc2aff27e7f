"""Input that is bad on purpose, one test a kind: a 400 with the field's name, while another answer streams on."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "max_tokens": 4},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 4},
    RESPONSES: {"input": "Hi", "max_output_tokens": 4},
    MESSAGES: {"messages": USER, "max_tokens": 4},
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
FLAT_TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A client of a server on which another answer streams until the test is over, and is complete."""
    body = {"prompt": "A list", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    with httpx.Client(base_url=server.url, timeout=120) as client, httpx.Client(base_url=server.url) as other:
        alone = client.post(COMPLETIONS, json=body).raise_for_status().json()["choices"][0]["text"]
        with other.stream("POST", COMPLETIONS, json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            first = next(lines)
            yield client
            events = [json.loads(line[6:]) for line in (first, *lines) if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == alone


def refuse(http: httpx.Client, path: str, param: str, body: bytes | dict[str, Any]) -> None:
    """Anthropic's errors have no field of that name, and say it in their sentence."""
    content = body if isinstance(body, bytes) else json.dumps({**VALID[path], **body}).encode()
    answer = http.post(path, content=content)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param in (error["message"] if path == MESSAGES else error["param"]), error


def with_field(path: str, name: str, value: bytes) -> bytes:
    """The valid body and one more field, as it is."""
    return json.dumps(VALID[path]).encode()[:-1] + b', "' + name.encode() + b'": ' + value + b"}"


def test_not_a_number(http: httpx.Client) -> None:
    for path in VALID:
        for value in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
            refuse(http, path, "temperature", with_field(path, "temperature", value))


def test_lone_surrogates(http: httpx.Client) -> None:
    names = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input", MESSAGES: "messages"}
    for path, name in names.items():
        for text in (rb"\ud800", rb"\udc00", rb"\ud800 x", rb"x\ud800\ud800", b"\xed\xa0\x80", b"\xff"):
            refuse(http, path, name, json.dumps(VALID[path]).encode().replace(b"Hi", text))


def test_ten_megabytes_of_nested_arrays(http: httpx.Client) -> None:
    arrays = b"[" * 5_000_000 + b"]" * 5_000_000
    for path in VALID:
        for name in ("metadata", "tools", "frobnicate"):
            refuse(http, path, name, with_field(path, name, arrays))


def test_negative_token_ids(http: httpx.Client) -> None:
    refuse(http, COMPLETIONS, "prompt", {"prompt": [5, -1]})
    refuse(http, COMPLETIONS, "prompt[1]", {"prompt": [[5], [-1]]})
    for path in (CHAT, COMPLETIONS):
        refuse(http, path, "stop_token_ids", {"stop_token_ids": [-1]})
        refuse(http, path, "logit_bias", {"logit_bias": {"-1": 1}})
    answer = http.post("/detokenize", json={"tokens": [5, -1]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")


def test_unknown_tools(http: httpx.Client) -> None:
    named = {"type": "function", "function": {"name": "other"}}
    refuse(http, CHAT, "tool_choice", {"tools": [TOOL], "tool_choice": named})
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL, named]}}
    where = "tool_choice.allowed_tools.tools[1].function.name"
    refuse(http, CHAT, where, {"tools": [TOOL], "tool_choice": allowed})
    refuse(http, CHAT, "tools[0].type", {"tools": [{"type": "web_search"}]})
    named = {"type": "function", "name": "other"}
    refuse(http, RESPONSES, "tool_choice", {"tools": [FLAT_TOOL], "tool_choice": named})
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [FLAT_TOOL, named]}
    refuse(http, RESPONSES, "tool_choice.tools[1].name", {"tools": [FLAT_TOOL], "tool_choice": allowed})
    refuse(http, RESPONSES, "tools[0].type", {"tools": [{"type": "web_search"}]})
    output = {"type": "function_call_output", "call_id": "call_0", "output": "x"}
    refuse(http, RESPONSES, "input[0].call_id", {"input": [output]})
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    refuse(http, MESSAGES, "tool_choice", {"tools": tools, "tool_choice": {"type": "tool", "name": "other"}})
    refuse(http, MESSAGES, "tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]})


def test_duplicate_tool_names(http: httpx.Client) -> None:
    refuse(http, CHAT, "tools[1].function.name", {"tools": [TOOL, TOOL]})
    refuse(http, RESPONSES, "tools[1].name", {"tools": [FLAT_TOOL, FLAT_TOOL]})
    tools = [{"name": "look", "input_schema": {"type": "object"}}] * 2
    refuse(http, MESSAGES, "two functions", {"tools": tools})
