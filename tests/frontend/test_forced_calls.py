"""A call that must come and is cut: nothing of its markup is content, in any format, wherever it is cut."""

from collections.abc import Iterator
from typing import Any

import pytest

from frontend.client import TokenDelta
from frontend.client.deltas import int32_array
from frontend.output_processor import OutputOptions, OutputPiece, OutputProcessor
from frontend.parsers.chat_parser import ParserPlan
from frontend.parsers.registry import HARMONY
from frontend.tokenizer import TextTokenizer
from tests.frontend.messages.test_messages import send
from tests.frontend.parsers.corpus import TOOL_CORPUS, TOOLS
from tests.frontend.responses.test_responses import named_events, respond
from tests.frontend.support import Setup, deltas_of, events_of, running_setup, train_tokenizer
from tests.frontend.test_text import finished

TOKENIZER = TextTokenizer(train_tokenizer(), {"type": "ByteLevel"}, {})
CALLS = {
    name: next(
        sample.text.removeprefix(sample.content)
        for sample in samples
        if sample.calls and sample.text.startswith(sample.content) and not sample.reasoning
    )
    for name, samples in TOOL_CORPUS.items()
}
"""Of each format an output that is calls and nothing else."""


def outcome(name: str, token_ids: list[int], *, is_call_forced: bool) -> OutputPiece:
    """Of an output that is cut behind these tokens."""
    plan = ParserPlan(name, name if name == HARMONY else None)
    parsers = plan.for_request("", TOOLS, is_call_forced=is_call_forced)
    processor = OutputProcessor(TOKENIZER, [1], OutputOptions(parsers=parsers))
    whole = OutputPiece()
    for number, token_id in enumerate(token_ids):
        end = finished("length") if number == len(token_ids) - 1 else None
        whole.add(processor.push(TokenDelta(int32_array([token_id]), None, end)))
    return whole


@pytest.mark.parametrize(("name", "text"), CALLS.items(), ids=CALLS)
def test_nothing_of_its_markup_is_content(name: str, text: str) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    num_leaks = 0
    for end in range(1, len(token_ids) + 1):
        piece = outcome(name, token_ids[:end], is_call_forced=True)
        assert (piece.text, piece.finish_reason) == ("", "length")
        num_leaks += bool(outcome(name, token_ids[:end], is_call_forced=False).text)
    assert piece.tool_calls, "the whole text is calls"
    assert num_leaks, "where a call may come, what is cut off of one is content"


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


LOOK = {"name": "look", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "Köln"}}\n</tool_call>'
THOUGHT = "<think>Hm.</think>"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("reasoning", ["", THOUGHT])
def test_in_a_chat(setup: Setup, choice: Any, reasoning: str) -> None:
    setup.say(reasoning + CALL)
    max_tokens = len(setup.tokenizer.encode(reasoning + CALL[:40]).ids)
    fields = {"tools": [{"type": "function", "function": LOOK}], "tool_choice": choice, "max_tokens": max_tokens}
    (whole,) = setup.chat(**fields).json()["choices"]
    assert (whole["message"]["content"], whole["finish_reason"]) == (None, "length")
    assert "tool_calls" not in whole["message"]
    assert whole["message"].get("reasoning") == ("Hm." if reasoning else None)
    deltas = deltas_of(events_of(setup.chat(stream=True, **fields)))
    assert all("content" not in delta["delta"] and "tool_calls" not in delta["delta"] for delta in deltas)
    assert deltas[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_in_a_message(setup: Setup, choice: Any) -> None:
    setup.say(THOUGHT + CALL)
    max_tokens = len(setup.tokenizer.encode(THOUGHT + CALL[:40]).ids)
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    fields = {"tools": tools, "tool_choice": choice, "max_tokens": max_tokens}
    body = send(setup, **fields).json()
    assert [block["type"] for block in body["content"]] == ["thinking"]
    assert body["stop_reason"] == "max_tokens"
    events = named_events(send(setup, stream=True, **fields))
    started = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert started == ["thinking"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "look"}])
def test_in_a_response(setup: Setup, choice: Any) -> None:
    setup.say(THOUGHT + CALL)
    max_tokens = len(setup.tokenizer.encode(THOUGHT + CALL[:40]).ids)
    fields = {"tools": [{"type": "function", **LOOK}], "tool_choice": choice, "max_output_tokens": max_tokens}
    body = respond(setup, **fields).json()
    streamed = named_events(respond(setup, stream=True, **fields))[-1]["response"]
    for response in (body, streamed):
        assert [item["type"] for item in response["output"]] == ["reasoning"]
        assert response["status"] == "incomplete"


def test_where_a_call_may_come_it_stays_text(setup: Setup) -> None:
    setup.say(CALL)
    tools = [{"type": "function", "function": LOOK}]
    (choice,) = setup.chat(tools=tools, max_tokens=20).json()["choices"]
    assert CALL.startswith(choice["message"]["content"])
    assert choice["message"]["content"]
