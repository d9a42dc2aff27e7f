"""The demo model calls a tool and reads its result, as a client's loop does, and calls those alone that are allowed."""

import json
import re
from typing import Any

import openai
import pytest

from tests.e2e.server import Server

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time of a zone.",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}
QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}


def test_a_tool_is_called_and_its_result_read(server: Server, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "tools": [WEATHER], "temperature": 0, "max_tokens": 96}
    choice = client.chat.completions.create(messages=[QUESTION], **asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})

    with client.chat.completions.stream(messages=[QUESTION], **asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert [one.function.arguments for one in streamed.message.tool_calls] == [call.function.arguments]

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "clear"}'}
    said: Any = choice.message.model_dump(exclude_none=True)
    answer = client.chat.completions.create(messages=[QUESTION, said, result], **asked).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content
    assert answer.message.tool_calls is None


def test_reasoning_is_apart(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "What does len do?"}],
        temperature=0,
        max_tokens=200,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    message: Any = answer.choices[0].message
    assert message.reasoning == message.reasoning_content
    assert message.reasoning
    assert "think>" not in message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    reasoning_tokens = answer.usage.completion_tokens_details.reasoning_tokens or 0
    assert 2 < reasoning_tokens < answer.usage.completion_tokens


def chat_calls(client: openai.OpenAI, stream: bool, **asked: Any) -> tuple[list[str], str | None, int]:
    """Names of the calls, the reason of the end, the prompt's tokens."""
    if stream:
        with client.chat.completions.stream(stream_options={"include_usage": True}, **asked) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    (choice,) = answer.choices
    names = [call.function.name for call in choice.message.tool_calls or []]
    return names, choice.finish_reason, answer.usage.prompt_tokens


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_allowed_tools_of_a_chat(server: Server, client: openai.OpenAI, stream: bool) -> None:
    """The model wants to know of the weather, and is shown a clock as well."""

    def ask(choice: Any, **fields: Any) -> tuple[list[str], str | None, int]:
        asked: Any = {"model": server.model, "messages": [QUESTION], "tools": [WEATHER, CLOCK], "temperature": 0}
        return chat_calls(client, stream, **{**asked, "max_tokens": 120, "tool_choice": choice, **fields})

    def allowed(mode: str, *tools: Any) -> Any:
        names = [{"type": "function", "function": {"name": tool["function"]["name"]}} for tool in tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}

    names, _, num_prompt_tokens = ask("auto")
    assert names == ["get_weather"]
    for mode in ("auto", "required"):
        assert ask(allowed(mode, WEATHER)) == (["get_weather"], "tool_calls", num_prompt_tokens)
        assert ask(allowed(mode, CLOCK, WEATHER))[0] == ["get_weather"]
    names, reason, count = ask(allowed("required", CLOCK))
    assert (set(names), reason, count) == ({"get_time"}, "tool_calls", num_prompt_tokens)
    assert ask(allowed("required", CLOCK), parallel_tool_calls=False)[0] == ["get_time"]
    for seed in range(3):
        names, reason, count = ask(allowed("auto", CLOCK), temperature=1.0, seed=seed)
        assert set(names) <= {"get_time"}
        assert count == num_prompt_tokens


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_allowed_tools_of_a_response(server: Server, client: openai.OpenAI, stream: bool) -> None:
    tools: Any = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]

    def ask(choice: Any, **fields: Any) -> list[str]:
        asked: Any = {"model": server.model, "input": QUESTION["content"], "tools": tools, "tool_choice": choice}
        asked |= {"temperature": 0, "max_output_tokens": 120, **fields}
        if stream:
            with client.responses.stream(**asked) as events:
                answer: Any = events.get_final_response()
        else:
            answer = client.responses.create(**asked)
        echoed = answer.tool_choice
        assert (echoed if isinstance(echoed, str) else echoed.model_dump(exclude_none=True)) == choice
        return [item.name for item in answer.output if item.type == "function_call"]

    def allowed(mode: str, *names: str) -> Any:
        return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}

    assert ask("auto") == ["get_weather"]
    for mode in ("auto", "required"):
        assert ask(allowed(mode, "get_weather")) == ["get_weather"]
        assert ask(allowed(mode, "get_time", "get_weather")) == ["get_weather"]
    assert set(ask(allowed("required", "get_time"))) == {"get_time"}
    for seed in range(3):
        assert set(ask(allowed("auto", "get_time"), temperature=1.0, extra_body={"seed": seed})) <= {"get_time"}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_is_cut_is_no_content(server: Server, client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": server.model, "messages": [QUESTION], "tools": [WEATHER], "tool_choice": "required"}
    for max_tokens in range(1, 24, 2):
        asked |= {"temperature": 0, "max_tokens": max_tokens}
        if stream:
            deltas = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked)]
            contents, reason = {choice.delta.content for choice in deltas}, deltas[-1].finish_reason
        else:
            choice = client.chat.completions.create(**asked).choices[0]
            contents, reason = {choice.message.content}, choice.finish_reason
        assert contents == {None}
        assert reason in ("length", "tool_calls")


@pytest.mark.slow
def test_the_input_of_a_custom_tool_is_bound(server: Server, client: openai.OpenAI) -> None:
    wanted = {"type": "grammar", "syntax": "regex", "definition": "[0-9]{3}(-[a-f]{2})?"}
    tool: Any = {"type": "custom", "name": "code", "description": "Gives a code.", "format": wanted}
    asked: Any = {"model": server.model, "input": "What is the code?", "tools": [tool], "max_output_tokens": 60}
    for seed in range(3):
        answer = client.responses.create(tool_choice="required", extra_body={"seed": seed}, **asked)
        calls = [item for item in answer.output if item.type == "custom_tool_call"]
        assert calls
        assert all(re.fullmatch(wanted["definition"], call.input) for call in calls)
