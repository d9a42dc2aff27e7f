"""Tools and thinking in Anthropic's `/v1/messages`: blocks, events, and what conversations may have of both."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.messages.test_messages import PATH, USER, error_of, send
from tests.frontend.responses.test_responses import named_events
from tests.frontend.support import END, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text

LOOK = {"name": "look", "input_schema": {"type": "object"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "Köln"}}\n</tool_call>'
MIXED = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{CALL}\nDone."
USED = {"type": "tool_use", "id": "t1", "name": "look", "input": {"place": "Köln"}}


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def ask(setup: Setup, **fields: Any) -> dict[str, Any]:
    return send(setup, **{"tools": [LOOK], "max_tokens": 300, **fields}).json()


def joined(setup: Setup, **fields: Any) -> dict[str, Any]:
    """The events of a stream put together to a message, as Anthropic's clients do it."""
    events = named_events(send(setup, tools=[LOOK], max_tokens=300, stream=True, **fields))
    message = events[0]["message"]
    blocks = message["content"]
    partial, is_open = "", False
    for event in events[1:]:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            partial, is_open = "", True
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            kind, value = [value for _, value in sorted(event["delta"].items(), reverse=True)]
            kind, value = (kind, value) if kind.endswith("_delta") else (value, kind)
            if kind == "input_json_delta":
                partial += value
            else:
                blocks[-1][kind.removesuffix("_delta")] += value
        elif event["type"] == "content_block_stop":
            is_open = False
            if partial:
                blocks[-1]["input"] = json.loads(partial)
        elif event["type"] == "message_delta":
            message.update(event["delta"], usage=event["usage"])
    assert events[-1]["type"] == "message_stop"
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {**message, "id": "", "content": blocks}


def test_blocks_in_their_order(setup: Setup) -> None:
    setup.say(MIXED)
    body = ask(setup)
    uses = [block for block in body["content"] if block["type"] == "tool_use"]
    assert body["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        *uses,
        {"type": "text", "text": "Done."},
    ]
    assert [(use["name"], use["input"]) for use in uses] == [("look", {"place": "Köln"})] * 2
    assert len({use["id"] for use in uses}) == 2
    assert (body["stop_reason"], body["stop_sequence"]) == ("tool_use", None)
    assert '"name": "look"' in prompt_text(setup)


@pytest.mark.parametrize("text", [MIXED, CALL, "Hello.", "<think>hm", "<think>hm</think>Hi", "", f"{CALL}a{CALL}b"])
def test_streamed_and_whole_messages_are_the_same(setup: Setup, text: str) -> None:
    setup.say(text) if text else setup.say_ids([])
    assert without_ids(joined(setup)) == without_ids(ask(setup))


@pytest.mark.parametrize(
    ("choice", "types"),
    [
        ({"type": "auto"}, ["tool_use", "tool_use"]),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["tool_use"]),
        ({"type": "none"}, ["text"]),
    ],
)
def test_tool_choice(setup: Setup, choice: dict[str, Any], types: list[str]) -> None:
    setup.say(f"{CALL}\n{CALL}")
    assert [block["type"] for block in ask(setup, tool_choice=choice)["content"]] == types


def test_results_of_tools_are_messages_of_their_own(setup: Setup) -> None:
    setup.say("There.")
    used = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "I look."}, USED]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a bridge"}]}
    conversation = [
        *USER,
        {"role": "assistant", "content": used},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    ask(setup, messages=conversation, tools=None)
    assert prompt_text(setup) == (
        f'<|user|>Hi{END}<|assistant|>I look.[look({{"place": "Köln"}})]{END}<|tool|>a bridge{END}'
        f"<|user|>So?{END}<|assistant|>"
    )
    for content in ("a bridge", None, []):
        fields = {"messages": [*conversation[:2], {"role": "user", "content": [{**result, "content": content}]}]}
        ask(setup, tools=None, **fields)
        assert prompt_text(setup).endswith(f"<|tool|>{content or ''}{END}<|assistant|>")


def test_thinking_reaches_the_template(tmp_path: Any) -> None:
    template = "{{ enable_thinking }} {{ thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with running_setup(tmp_path, chat_template=template) as own:
        own.say("x")
        for thinking, word in (({"type": "enabled", "budget_tokens": 50}, "True"), ({"type": "disabled"}, "False")):
            send(own, thinking=thinking).raise_for_status()
            assert prompt_text(own) == f"{word} {word}Hi"


def test_thinking_is_bounded_where_it_is_known(setup: Setup, tmp_path: Any) -> None:
    thinking = {"type": "enabled", "budget_tokens": 50}
    setup.say("x")
    send(setup, thinking=thinking).raise_for_status()
    assert setup.core.received(AddRequest)[-1].sampling.thinking_token_budget == 50
    with running_setup(tmp_path, chat_template="Hi") as own:
        own.say("x")
        send(own, thinking=thinking).raise_for_status()
        assert own.core.received(AddRequest)[-1].sampling.thinking_token_budget is None


def test_token_counts_count_tools(setup: Setup) -> None:
    setup.say("ok")
    fields: dict[str, Any] = {"model": MODEL, "messages": USER}
    counted = setup.post(f"{PATH}/count_tokens", {**fields, "tools": [LOOK]}).json()["input_tokens"]
    assert counted == ask(setup)["usage"]["input_tokens"]
    assert counted > setup.post(f"{PATH}/count_tokens", fields).json()["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [LOOK, LOOK]}, "two functions"),
        ({"tools": [{**LOOK, "name": "two words"}]}, "tools[0].name"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema.type"),
        ({"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}, "tools": None}, "'any' must come with tools"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"messages": [*USER, {"role": "assistant", "content": [USED]}]}, "tool_result"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"messages": [*USER, {"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[1].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content"),
    ],
)
@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
def test_a_wrong_field_is_named(setup: Setup, path: str, fields: dict[str, Any], word: str) -> None:
    body = {"model": MODEL, "messages": USER, "tools": [LOOK], **fields}
    if path == PATH:
        body["max_tokens"] = 100
    assert word in error_of(setup.post(path, body), 400)["message"]
    assert setup.core.received(AddRequest) == []
