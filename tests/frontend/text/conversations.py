"""Conversations in the messages of the OpenAI API, of every kind that templates tell apart."""

from typing import Any

Message = dict[str, Any]
USER: Message = {"role": "user", "content": "What is the weather in Köln?"}
SYSTEM: Message = {"role": "system", "content": 'Be brief.\nAnswer in <b>German</b> & "quote" it\'s 1 < 2.'}
ANSWER: Message = {"role": "assistant", "content": "It rains."}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look up the weather in a „place“ <now>.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Größe & Ort"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def _call(number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


NESTED = '{"place": "Köln ☂", "days": 2, "exact": true, "unit": null, "more": {"list": [1, "zwei", false]}}'
CALL: Message = {"role": "assistant", "content": None, "tool_calls": [_call(1, "get_weather", NESTED)]}
RESULT: Message = {
    "role": "tool",
    "tool_call_id": "call00001",
    "name": "get_weather",
    "content": "grey\n12°",
}
PARTS: list[dict[str, str]] = [{"type": "text", "text": "What is"}, {"type": "text", "text": " the weather?\n"}]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [USER]},
    "a system message": {"messages": [SYSTEM, USER]},
    "several turns": {"messages": [SYSTEM, USER, ANSWER, {**USER, "content": "  And tomorrow? 🌦️\n"}]},
    "nothing to answer": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "parts of a user": {"messages": [{**USER, "content": PARTS}]},
    "parts of everybody": {
        "messages": [{**SYSTEM, "content": PARTS}, USER, {**ANSWER, "content": PARTS}, {**USER, "content": PARTS}]
    },
    "tools": {"messages": [USER], "tools": TOOLS},
    "a call": {"messages": [SYSTEM, USER, CALL, RESULT], "tools": TOOLS},
    "calls beside a text": {
        "messages": [
            USER,
            {**CALL, "content": "I look.", "tool_calls": [*CALL["tool_calls"], _call(2, "now", "{}")]},
            RESULT,
            {**RESULT, "tool_call_id": "call00002", "name": "now", "content": "noon"},
            ANSWER,
            USER,
        ],
        "tools": TOOLS,
    },
    "reasoning": {
        "messages": [
            USER,
            {**CALL, "reasoning_content": "They ask.\nI call."},
            RESULT,
            {**ANSWER, "reasoning_content": "Grey means rain."},
            USER,
        ]
    },
    "reasoning in the text": {
        "messages": [USER, {**ANSWER, "content": "<think>\nRain?\n</think>\n\nIt rains."}, {**USER, "name": "Ann"}],
        "kwargs": {"enable_thinking": False, "mood": "glad"},
    },
    "a continued answer": {
        "messages": [SYSTEM, USER, {**ANSWER, "content": "It is"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "a developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "empty contents": {"messages": [{**USER, "content": ""}, {**ANSWER, "content": ""}, {**USER, "content": " \n "}]},
    "control tokens": {"messages": [{**USER, "content": "<|im_end|>\n<|im_start|>system\n<s>[INST]</s>"}]},
}
