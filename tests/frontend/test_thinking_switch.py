"""Thinking that a request switches off: the template is told, and an answer that is bound begins at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.messages.test_messages import send
from tests.frontend.responses.test_responses import respond
from tests.frontend.support import Setup, running_setup

SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
ANSWER = '{"a": 1}'
CALL = f'<tool_call>\n{{"name": "look", "arguments": {ANSWER}}}\n</tool_call>'
FUNCTION = {"name": "look", "parameters": SCHEMA}
TEMPLATE = "{{ enable_thinking }} {{ thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
CHAT: dict[str, dict[str, Any]] = {
    "answer": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "call": {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
}
RESPONSE: dict[str, dict[str, Any]] = {
    "answer": {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    "call": {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"},
}
MESSAGE: dict[str, dict[str, Any]] = {
    "answer": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "call": {"tools": [{"name": "look", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
}
KINDS = pytest.mark.parametrize("kind", ["answer", "call"])


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Of a model whose outputs are reasoning unless the prompt says otherwise, and whose template never does."""
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "deepseek_r1"}
    template = TEMPLATE + "{% if tools %}{{ tools }}{% endif %}"
    with running_setup(tmp_path_factory.mktemp("run"), **formats, chat_template=template) as setup:
        yield setup


def prompt_of(setup: Setup) -> str:
    """What the engine was asked to go on with last."""
    token_ids = memoryview(setup.core.received(AddRequest)[-1].prompt_token_ids).cast("i")
    return setup.tokenizer.decode(list(token_ids))


def check(setup: Setup, *, is_off: bool) -> None:
    """What the engine was asked for last."""
    asked = setup.core.received(AddRequest)[-1]
    assert asked.sampling.grammar is not None
    assert ("</think>" not in asked.sampling.grammar) == is_off
    assert asked.sampling.thinking_token_budget is None
    assert prompt_of(setup).startswith("False" if is_off else "True")


@KINDS
@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "none", "thinking_token_budget": 5},
    ],
)
def test_in_a_chat(setup: Setup, kind: str, switch: dict[str, Any]) -> None:
    setup.say(ANSWER if kind == "answer" else CALL)
    message = setup.chat(**CHAT[kind], **switch).json()["choices"][0]["message"]
    assert message.get("reasoning") is None
    if kind == "answer":
        assert message["content"] == ANSWER
    else:
        assert message["tool_calls"][0]["function"]["arguments"] == ANSWER
    asked = setup.core.received(AddRequest)[-1].sampling
    assert asked.grammar is not None
    assert "</think>" not in asked.grammar
    assert asked.thinking_token_budget is None


@KINDS
@pytest.mark.parametrize(
    "switch", [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning": {"effort": "none"}}]
)
def test_in_a_response(setup: Setup, kind: str, switch: dict[str, Any]) -> None:
    setup.say(ANSWER if kind == "answer" else CALL)
    (item,) = respond(setup, **RESPONSE[kind], **switch).json()["output"]
    assert (item["arguments"] if kind == "call" else item["content"][0]["text"]) == ANSWER
    check(setup, is_off=True)


@KINDS
def test_in_a_message(setup: Setup, kind: str) -> None:
    setup.say(ANSWER if kind == "answer" else CALL)
    (block,) = send(setup, **MESSAGE[kind], thinking={"type": "disabled"}).json()["content"]
    assert (block.get("text") == ANSWER) if kind == "answer" else (block["input"] == {"a": 1})
    check(setup, is_off=True)


@KINDS
@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
    ],
)
def test_who_switches_it_on_may_see_it(setup: Setup, kind: str, switch: dict[str, Any]) -> None:
    """The variables of the template have the last word."""
    setup.say(f"Hm.</think>{ANSWER if kind == 'answer' else CALL}")
    message = setup.chat(**CHAT[kind], **switch).json()["choices"][0]["message"]
    assert message["reasoning"] == "Hm."
    check(setup, is_off=False)


@pytest.mark.parametrize("effort", [None, "low", "high"])
def test_other_efforts_say_nothing_to_the_template(setup: Setup, effort: str | None) -> None:
    setup.say("Hm.</think>Yes.")
    message = setup.chat(reasoning_effort=effort).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    assert prompt_of(setup) == " Hello"


def test_an_answer_that_nothing_binds_may_still_be_thought_about(setup: Setup) -> None:
    """A template without a switch leaves it to the model, and what it thinks is reasoning as ever."""
    setup.say("Hm.</think>Yes.")
    message = setup.chat(reasoning_effort="none").json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
