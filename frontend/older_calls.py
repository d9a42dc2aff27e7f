"""Calls as OpenAI's API had them before there were tools: `function_call`, and answers of the role `function`."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from frontend.protocol.chat import ChatMessage, ToolCall


def as_tool_calls(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """The same messages with tools' calls and their answers. An answer is that of the last call before it."""
    call_id = None
    for index, message in enumerate(messages):
        if message.function_call is not None and not message.tool_calls:
            call_id = f"call{index:05d}"  # such calls had no ids; some templates want one of nine characters
            call = ToolCall(id=call_id, function=message.function_call)
            yield replace(message, tool_calls=[call], function_call=None)
        elif message.role == "function":
            yield replace(message, role="tool", tool_call_id=call_id)
        else:
            yield message
