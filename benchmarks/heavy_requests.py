"""The requests that cost a frontend most before the engine hears of them, by a readable name."""

from typing import Any, NamedTuple

import msgspec

SENTENCE = "The garbage collector frees objects that are no longer reachable. "
NUM_CHARS = 100_000
SCHEMA_BYTES = 1_000_000


class HeavyRequest(NamedTuple):
    name: str
    path: str
    body: dict[str, Any] | None
    """None: it is a GET."""
    status: int = 200
    """That of the right answer."""


def heavy_requests() -> list[HeavyRequest]:
    """Those of the figure in the documentation, then their neighbours."""
    text = (SENTENCE * (NUM_CHARS // len(SENTENCE) + 1))[:NUM_CHARS]
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"Message {i}: {SENTENCE}"} for i in range(1001)]
    tools = [_tool(number) for number in range(200)]
    schema = _schema(SCHEMA_BYTES)
    form = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
    tags = {"type": "structural_tag", "format": _triggered_tags(256)}
    return [
        _chat("chat, structural tag of 256 triggers", structured_outputs={"structural_tag": tags}),
        _chat("chat, 200 tools", tools=tools),
        _chat("chat, 200 strict tools", tools=[_tool(number, strict=True) for number in range(200)]),
        _chat("chat, schema of 1 MB", response_format=form),
        _chat("chat, text of 100,000", text),
        _chat("chat, 1,000 messages", messages=messages),
        HeavyRequest("completion, text of 100,000", "/v1/completions", {"prompt": text, "max_tokens": 1}),
        HeavyRequest("completion, echo of 100,000", "/v1/completions", {"prompt": text, "max_tokens": 0, "echo": True}),
        HeavyRequest("tokenize, text of 100,000", "/tokenize", {"prompt": text}),
        HeavyRequest("tokenize, its tokens too", "/tokenize", {"prompt": text, "return_token_strs": True}),
        HeavyRequest("tokenize, 1,000 messages", "/tokenize", {"messages": messages}),
        HeavyRequest("detokenize, 26,000 ids", "/detokenize", {"tokens": [300 + i % 3000 for i in range(26_000)]}),
        HeavyRequest("count_tokens, text of 100,000", "/v1/messages/count_tokens", _conversation(text)),
        HeavyRequest("messages, text of 100,000", "/v1/messages", {**_conversation(text), "max_tokens": 1}),
        HeavyRequest("response, text of 100,000", "/v1/responses", {"input": text, "max_output_tokens": 1}),
        HeavyRequest("response, in the background", "/v1/responses", _background()),
        HeavyRequest("metrics", "/metrics", None),
        HeavyRequest("openapi", "/openapi.json", None),
        *_large_bodies(),
        _chat("chat, 128 choices of 16, 20 logprobs", max_tokens=16, n=128, logprobs=True, top_logprobs=20),
        _chat("chat, template that loops", chat_template=_LOOP, status=400),
    ]


_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def _background() -> dict[str, Any]:
    """A stream of 2,000 tokens, each event of which is stored."""
    return {"input": SENTENCE, "background": True, "stream": True, "max_output_tokens": 2000}


def _large_bodies() -> list[HeavyRequest]:
    """Bodies of 8 MB, most of which are refused for the length of the prompt."""
    ids = [[i % 4000 for i in range(4000)]] * 400
    text = SENTENCE * (8_000_000 // len(SENTENCE))
    messages = [{"role": "user", "content": ""}] * 200_000
    return [
        HeavyRequest("completion, 400 prompts of 4,000 ids", "/v1/completions", {"prompt": ids, "max_tokens": 1}),
        HeavyRequest("completion, text of 8 MB", "/v1/completions", {"prompt": text}, status=400),
        _chat("chat, 200,000 messages", messages=messages, status=400),
        HeavyRequest("tokenize, text of 8 MB", "/tokenize", {"prompt": text}),
    ]


def _chat(name: str, content: str = "Hello", *, status: int = 200, **fields: Any) -> HeavyRequest:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}
    return HeavyRequest(name, "/v1/chat/completions", body, status)


def _conversation(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _tool(number: int, **fields: Any) -> dict[str, Any]:
    properties = {
        f"argument_{i}": {"type": "string", "description": SENTENCE, "maxLength": 100 + i + number} for i in range(5)
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": f"function_{number}", "description": SENTENCE, "parameters": parameters, **fields}
    return {"type": "function", "function": function}


def _triggered_tags(count: int) -> dict[str, Any]:
    tags = [
        {
            "type": "tag",
            "begin": f"<function_{number}=",
            "content": {"type": "json_schema", "json_schema": {"type": "object"}},
            "end": "</function>",
        }
        for number in range(count)
    ]
    return {"type": "triggered_tags", "triggers": [f"<function_{i}=" for i in range(count)], "tags": tags}


def _schema(num_bytes: int) -> dict[str, Any]:
    """An object of that many bytes as JSON, or a little less."""
    properties: dict[str, Any] = {}
    one = {"type": "string", "description": SENTENCE, "minLength": 1}
    size = len(msgspec.json.encode({"field_00000": one}))
    for number in range((num_bytes - 100) // (size + 20)):
        properties[f"field_{number:05d}"] = one
    return {"type": "object", "properties": properties, "additionalProperties": False}
