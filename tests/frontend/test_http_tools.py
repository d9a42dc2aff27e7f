"""Tool calls and reasoning in chat completions, whole and streamed."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.support import MODEL, Setup, deltas_of, events_of, running_setup
from tests.frontend.test_http_answers import prompt_text

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LISTEN = {"type": "function", "function": {"name": "listen", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "Köln"}}\n</tool_call>'
ARGUMENTS = '{"place": "Köln"}'


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def whole(setup: Setup, **fields: Any) -> dict[str, Any]:
    choice: dict[str, Any] = setup.chat(**{"tools": [LOOK], "max_tokens": 300, **fields}).json()["choices"][0]
    return choice


def joined(setup: Setup, **fields: Any) -> dict[str, Any]:
    """A stream put together to what the whole answer has."""
    deltas = deltas_of(events_of(setup.chat(**{"tools": [LOOK], "max_tokens": 300, "stream": True, **fields})))
    assert deltas[-1]["delta"] == {}
    assert [delta["finish_reason"] for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    message: dict[str, Any] = {"role": deltas[0]["delta"]["role"], "content": None, "refusal": None}
    for delta in (choice["delta"] for choice in deltas):
        for name in ("content", "reasoning", "reasoning_content"):
            if name in delta:
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", []):
            assert call.pop("index") == len(message.setdefault("tool_calls", []))
            message["tool_calls"].append(call)
    return {"message": message, "finish_reason": deltas[-1]["finish_reason"]}


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    calls = [{**call, "id": ""} for call in message.get("tool_calls", [])]
    return {"message": {**message, **({"tool_calls": calls} if calls else {})}, "end": choice["finish_reason"]}


def test_a_call(setup: Setup) -> None:
    setup.say(CALL)
    choice = whole(setup)
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\nTo look, I call.\n</think>\n\nI look.\n{CALL}\n{CALL}",
        CALL,
        "Hello.",
        "<think>hm",
        "<think>hm</think>Hi",
        "<tool_call>\n{]\n</tool_call>",
    ],
)
def test_streamed_and_whole_answers_are_the_same(setup: Setup, text: str) -> None:
    setup.say(text)
    assert without_ids(joined(setup)) == without_ids(whole(setup))


def test_reasoning_then_text_then_calls(setup: Setup) -> None:
    setup.say(f"<think>\nHm: {CALL}\n</think>\n\nI look.\n{CALL}\n{CALL}")
    body = setup.chat(tools=[LOOK], max_tokens=400).json()
    message = body["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == f"Hm: {CALL}"
    assert message["content"] == "I look."
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    reasoning = setup.tokenizer.encode(f"<think>\nHm: {CALL}\n</think>", add_special_tokens=False).ids
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(reasoning)}


def test_a_malformed_call_is_text(setup: Setup) -> None:
    text = '<tool_call>\n{"name": "look", "arguments": {"place"}\n</tool_call>'
    setup.say(text)
    choice = whole(setup)
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_off_is_text(setup: Setup) -> None:
    setup.say(CALL)
    choice = whole(setup, max_tokens=20)
    assert "tool_calls" not in choice["message"]
    assert CALL.startswith(choice["message"]["content"])
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": "none"}])
def test_without_tools_there_are_no_calls(setup: Setup, fields: dict[str, Any]) -> None:
    setup.say(CALL)
    choice = whole(setup, **fields)
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


def allowing(*names: str, mode: str = "auto") -> dict[str, Any]:
    """Both tools, of which these may be called."""
    references = [{"type": "function", "function": {"name": name}} for name in names]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": references}}
    return {"tools": [LOOK, LISTEN], "tool_choice": choice}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_tools_that_are_not_allowed_are_seen_and_not_called(setup: Setup, stream: bool, mode: str) -> None:
    ask = joined if stream else whole
    other = CALL.replace("look", "listen")
    setup.say(f"{CALL}\n{other}")
    choice = ask(setup, **allowing("look", "listen", mode=mode))
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["look", "listen"]
    with_all = prompt_text(setup)
    # The engine does not heed the grammar here: a call that it would not have let through is no call.
    choice = ask(setup, **allowing("look", mode=mode))
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["look"]
    assert choice["message"]["content"] == other
    assert choice["finish_reason"] == "tool_calls"
    assert prompt_text(setup) == with_all
    grammars = [add.sampling.grammar for add in setup.core.received(AddRequest)]
    assert [("listen" in grammar, "look" in grammar) for grammar in grammars] == [(True, True), (False, True)]
    # Without a mode that binds it, the same is two calls.
    assert len(ask(setup, tools=[LOOK, LISTEN])["message"]["tool_calls"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_where_no_more_are_wanted(setup: Setup, stream: bool) -> None:
    setup.say(f"{CALL}\n{CALL}\nand more")
    choice = (joined if stream else whole)(setup, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_looked_for_in_content_alone(setup: Setup, stream: bool) -> None:
    setup.say(f"<think>first STOP</think>second {CALL} third STOP fourth")
    choice = (joined if stream else whole)(setup, stop=["STOP", "look"])
    assert choice["message"]["reasoning"] == "first STOP"
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] == "second  third "
    assert choice["finish_reason"] == "tool_calls"


def test_several_choices(setup: Setup) -> None:
    setup.say(f"<think>a</think>{CALL}")
    events = events_of(setup.chat(tools=[LOOK], n=3, stream=True, max_tokens=300))
    for index in range(3):
        deltas = deltas_of(events, index)
        assert sum(len(delta["delta"].get("tool_calls", [])) for delta in deltas) == 1
        assert deltas[-1]["finish_reason"] == "tool_calls"


def test_openais_client_puts_a_stream_together(setup: Setup) -> None:
    setup.say(f"I look.\n{CALL}")
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Look"}]
        tools: Any = [LOOK]
        with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools, max_tokens=300) as stream:
            completion = stream.get_final_completion()
    message = completion.choices[0].message
    assert message.content == "I look."
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"place": "Köln"}
