"""Anthropic's `/v1/messages`: shapes, events, token counts, and errors in its own shape."""

from typing import Any

import httpx
import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.responses.test_responses import named_events
from tests.frontend.support import END, MAX_MODEL_LEN, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text

PATH = "/v1/messages"
TEXT = "Grüße, 你好 🦊!"
USER = [{"role": "user", "content": "Hi"}]


def send(setup: Setup, **fields: Any) -> httpx.Response:
    return setup.post(PATH, {"model": MODEL, "messages": USER, "max_tokens": 100, **fields})


def error_of(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    return body["error"]


def test_a_message(setup):
    setup.say(TEXT)
    body = send(setup, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]).json()
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", MODEL)
    assert body["content"] == [{"type": "text", "text": TEXT}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["output_tokens"] == len(setup.tokenizer.encode(TEXT).ids)
    assert prompt_text(setup) == f"<|system|>Be brief.{END}<|user|>Hi{END}<|assistant|>"
    assert setup.core.received(AddRequest)[-1].sampling.max_tokens == 100


def test_a_salt_reaches_the_engine(setup):
    setup.say("x")
    send(setup, cache_salt="tenant")
    assert setup.core.received(AddRequest)[-1].cache_salt == "tenant"
    send(setup)
    assert setup.core.received(AddRequest)[-1].cache_salt is None


def test_why_it_ended(setup):
    setup.say("a b c d e f g")
    assert send(setup, max_tokens=2).json()["stop_reason"] == "max_tokens"
    body = send(setup, stop_sequences=["d", "zzz"]).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "d")
    assert body["content"][0]["text"] == "a b c "


def test_the_events_of_a_stream(setup):
    setup.say(TEXT)
    events = named_events(send(setup, stream=True))
    types = [event["type"] for event in events]
    num_deltas = types.count("content_block_delta")
    assert types == [
        "message_start", "content_block_start", *["content_block_delta"] * num_deltas,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[1]["content_block"] == {"type": "text", "text": ""}
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == TEXT
    assert all(texts)
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(setup.tokenizer.encode(TEXT).ids)


def test_a_last_message_of_the_assistant_is_continued(setup):
    setup.say("ok")
    send(setup, messages=[*USER, {"role": "assistant", "content": [{"type": "text", "text": "I am"}]}])
    assert prompt_text(setup) == f"<|user|>Hi{END}<|assistant|>I am"


def test_token_counts_are_those_of_a_message(setup):
    setup.say("ok")
    fields = {"messages": USER, "system": "S"}
    counted = setup.post(f"{PATH}/count_tokens", {"model": MODEL, **fields}).json()
    used = send(setup, **fields).json()["usage"]
    assert counted == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content"),
        ({"messages": [*USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "messages[1].content[0]"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": MAX_MODEL_LEN}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"thinking": {"type": "always"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(setup, fields, word, stream):
    error = error_of(send(setup, stream=stream, **fields), 400)
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]
    assert setup.core.received(AddRequest) == []


def test_errors_of_every_kind_have_the_same_shape(setup):
    assert error_of(send(setup, model="other"), 404)["type"] == "not_found_error"
    assert error_of(setup.post(PATH, {"messages": USER}), 400)["message"] == "max_tokens must be given."
    assert error_of(setup.http.post(PATH, content=b"{"), 400)["type"] == "invalid_request_error"
    assert error_of(setup.http.get(PATH), 405)["type"] == "invalid_request_error"
    assert error_of(setup.http.post(PATH, content=b"x" * 2**21), 413)["type"] == "request_too_large"
    assert setup.post("/v1/chat/completions", {}).json().keys() == {"error"}


def test_a_failure_midway_is_an_event(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one two three", endless=True)
        own.core.pause()
        own.core.allow_steps(2)
        body = {"messages": USER, "max_tokens": 50, "stream": True}
        with own.http.stream("POST", PATH, json=body) as response:
            lines = response.iter_lines()
            while "content_block_delta" not in next(lines):
                pass
            own.core.stop()
            rest = [line for line in lines if line]
    assert rest[-2] == "event: error"
    assert '"overloaded_error"' in rest[-1]
