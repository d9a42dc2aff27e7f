"""Typed chat messages to the plain values that chat templates expect."""

import contextlib
from typing import Any

import msgspec

from frontend.errors import bad_request
from frontend.older_calls import as_tool_calls
from frontend.protocol.chat import ChatMessage, ContentPart, ToolCall


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Contents as texts or lists of text parts; one that is null is left out. Raises a 400 for what a text model
    cannot take."""
    if not messages:
        raise bad_request("messages must have at least one message.", "messages")
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(as_tool_calls(messages))]


def _template_message(message: ChatMessage, where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role}
    content = message.refusal if message.content is None else message.content
    if content is not None:
        plain["content"] = _parts(content, where) if isinstance(content, list) else content
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    names = (message.reasoning_content, message.reasoning, message.thinking)
    reasoning = next((name for name in names if name is not None), None)
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = [_template_tool_call(call) for call in message.tool_calls]
    return plain


def _parts(content: list[ContentPart], where: str) -> str | list[dict[str, str]]:
    """No parts at all are an empty text."""
    parts = []
    for index, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal") or text is None:
            raise bad_request(
                f"A part of a message must be text, not {part.type!r}: this model takes text only.",
                f"{where}.content[{index}]",
            )
        parts.append({"type": "text", "text": text})
    return parts or ""


def _template_tool_call(call: ToolCall) -> dict[str, Any]:
    """Templates expect the arguments as an object; the API has them as JSON in a string. What a model wrote that is no
    JSON stays a text."""
    arguments: Any = call.function.arguments or "{}"
    with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        arguments = msgspec.json.decode(arguments)
    plain: dict[str, Any] = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    if call.id is not None:
        plain["id"] = call.id
    return plain
