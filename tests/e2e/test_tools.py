"""The demo model calls a tool and reads its result, as a client's loop does."""

import json
from typing import Any

import openai

from tests.e2e.server import Server

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
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
