"""What conversations `/v1/messages` takes: its own answers, turns of any order, results of tools, system messages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.frontend.messages.test_messages import PATH, USER, error_of, send
from tests.frontend.messages.test_tools import CALL, LOOK, USED, joined
from tests.frontend.responses.test_responses import named_events
from tests.frontend.support import END, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text

LAST = [{"role": "user", "content": "And?"}]


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def prompt_of(setup: Setup, messages: list[Any], **fields: Any) -> str:
    """The prompt of a conversation, which is counted as it is answered."""
    setup.say("ok")
    answer = send(setup, messages=messages, **fields)
    answer.raise_for_status()
    counted = setup.post(f"{PATH}/count_tokens", {"model": MODEL, "messages": messages, **fields})
    assert counted.json()["input_tokens"] == answer.json()["usage"]["input_tokens"]
    return prompt_text(setup)


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "fields", "types"),
    [
        ("<think>half a thought", {}, ["thinking"]),
        ("<think>hm</think>Hi", {}, ["thinking", "text"]),
        ("Join", {"stop_sequences": ["Join"]}, []),
        ("", {}, []),
        ("a STOP", {"stop_sequences": ["STOP"]}, ["text"]),
        (f"{CALL}\n \n\nSTOP", {"stop_sequences": ["STOP"]}, ["tool_use"]),
        (f"<think>hm</think>I look.\n{CALL}\n{CALL}", {}, ["thinking", "text", "tool_use", "tool_use"]),
    ],
)
def test_an_answer_is_taken_back(
    setup: Setup, stream: bool, text: str, fields: dict[str, Any], types: list[str]
) -> None:
    setup.say(text) if text else setup.say_ids([])
    body = joined(setup, **fields) if stream else send(setup, tools=[LOOK], max_tokens=300, **fields).json()
    assert [block["type"] for block in body["content"]] == types
    assert all(block.get("text") != "" for block in body["content"])
    uses = [block["id"] for block in body["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use, "content": "x"} for use in uses]
    prompt = prompt_of(setup, [*USER, said(body["content"]), {"role": "user", "content": results or "And?"}])
    assert prompt.endswith(f"<|tool|>x{END}<|assistant|>" if uses else f"And?{END}<|assistant|>")


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}], [{"type": "redacted_thinking"}]])
def test_a_turn_without_anything_is_left_out(setup: Setup, content: Any) -> None:
    assert prompt_of(setup, [*USER, said(content), *LAST]) == f"<|user|>Hi\nAnd?{END}<|assistant|>"
    assert prompt_of(setup, [*USER, said(content)]) == f"<|user|>Hi{END}<|assistant|>"
    assert prompt_of(setup, [*USER, said("I am"), said(content)]) == f"<|user|>Hi{END}<|assistant|>I am"
    assert "not empty" in error_of(send(setup, messages=[said(content)]), 400)["message"]


def test_turns_of_one_role_are_one(setup: Setup) -> None:
    messages = [*USER, *LAST, said("I "), said([{"type": "text", "text": "am"}]), *LAST]
    assert prompt_of(setup, messages) == f"<|user|>Hi\nAnd?{END}<|assistant|>I am{END}<|user|>And?{END}<|assistant|>"
    assert prompt_of(setup, messages[:-1]) == f"<|user|>Hi\nAnd?{END}<|assistant|>I am"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"content": "no such place", "is_error": True}, "Error: no such place"),
        ({"content": [{"type": "text", "text": "Error 5"}], "is_error": True}, "Error 5"),
        ({"is_error": True}, "Error"),
        ({"content": "", "is_error": False}, ""),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}, "a"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
    ],
)
def test_results_of_tools(setup: Setup, fields: dict[str, Any], shown: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "cache_control": {"type": "ephemeral"}, **fields}
    prompt = prompt_of(setup, [*USER, said([USED]), {"role": "user", "content": [result]}])
    assert prompt.endswith(f"<|tool|>{shown}{END}<|assistant|>")


def test_a_result_that_is_no_text_is_named(setup: Setup) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}, image]}
    error = error_of(send(setup, messages=[*USER, said([USED]), {"role": "user", "content": [result]}]), 400)
    assert "messages[2].content[0].content[1] must be text, not 'image'" in error["message"]


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "look"}, {"type": "any"}, {"type": "auto"}])
def test_an_answer_with_a_call_ends_for_it(setup: Setup, choice: dict[str, Any]) -> None:
    setup.say(CALL)
    for one_call in (False, True):
        fields = {"tool_choice": {**choice, "disable_parallel_tool_use": one_call}}
        body = send(setup, tools=[LOOK], max_tokens=300, **fields).json()
        for message in (body, joined(setup, **fields)):
            assert ([block["type"] for block in message["content"]], message["stop_reason"]) == (
                ["tool_use"],
                "tool_use",
            )


def test_a_call_that_max_tokens_cuts_is_no_tool_use(setup: Setup) -> None:
    setup.say(f"{CALL} and more")
    body = send(setup, tools=[LOOK], max_tokens=len(setup.tokenizer.encode(f"{CALL} and").ids)).json()
    assert ([block["type"] for block in body["content"]], body["stop_reason"]) == (["tool_use", "text"], "max_tokens")


def test_the_system_speaks_within_a_conversation(setup: Setup) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    said_there = f"<|system|>Be brief.{END}"
    assert prompt_of(setup, [*USER, system]) == f"<|user|>Hi{END}{said_there}<|assistant|>"
    assert prompt_of(setup, [*USER, system, *LAST], system="S") == (
        f"<|system|>S{END}<|user|>Hi{END}{said_there}<|user|>And?{END}<|assistant|>"
    )
    assert prompt_of(setup, [*USER, said("I am"), system]) == (
        f"<|user|>Hi{END}<|assistant|>I am{END}{said_there}<|assistant|>"
    )
    assert "messages[1].content" in error_of(send(setup, messages=[*USER, {**system, "content": ""}]), 400)["message"]


def test_a_system_text_without_anything_is_none(setup: Setup) -> None:
    for system in ("", [], [{"type": "text", "text": ""}]):
        assert prompt_of(setup, USER, system=system) == f"<|user|>Hi{END}<|assistant|>"


def test_a_stream_without_any_text_has_no_block(setup: Setup) -> None:
    setup.say_ids([])
    types = [event["type"] for event in named_events(send(setup, stream=True))]
    assert types == ["message_start", "message_delta", "message_stop"]
