"""Chats with `function_call` and the role `function`, and calls whose arguments are no JSON."""

from typing import Any

import pytest

from frontend.conversation import template_messages
from frontend.protocol.chat import ChatMessage, FunctionCall
from tests.frontend.support import END, MODEL, Setup
from tests.frontend.test_http_answers import prompt_text

USER = {"role": "user", "content": "Hi"}


def prompt_of(setup: Setup, *messages: dict[str, Any]) -> str:
    setup.say("ok")
    setup.post("/v1/chat/completions", {"model": MODEL, "messages": [USER, *messages]}).raise_for_status()
    return prompt_text(setup)


def test_they_are_what_tools_calls_are(setup: Setup) -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    older = prompt_of(
        setup,
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "f", "content": "r"},
    )
    newer = prompt_of(
        setup,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    )
    assert older == newer
    assert f'[f({{"a": 1}})]{END}<|tool|>r{END}' in older


def test_an_answer_has_the_id_of_its_call() -> None:
    call = ChatMessage(role="assistant", function_call=FunctionCall(name="f", arguments=""))
    answer = ChatMessage(role="function", name="f", content="r")
    shown = template_messages([call, answer, call, answer])
    ids = [message["tool_calls"][0]["id"] for message in shown[::2]]
    assert [message["tool_call_id"] for message in shown[1::2]] == ids
    assert len(set(ids)) == 2
    assert all(len(one) == 9 for one in ids)


@pytest.mark.parametrize("arguments", ["{bad", '{"a": ', "a = 1", '{"a": 1} {"b": 2}', "[" * 5000])
def test_arguments_that_are_no_json_are_text(setup: Setup, arguments: str) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}], "add_generation_prompt": False}
    tokens = setup.post("/tokenize", body).json()["tokens"]
    prompt = setup.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    quoted = arguments.replace('"', r"\"")
    assert f'[f("{quoted}")]' in prompt
