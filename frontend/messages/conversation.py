"""Anthropic's messages of blocks as the messages of a chat.

Results of tools are blocks of the user's message there, and messages of their own here.
"""

from collections.abc import Sequence

import msgspec

from frontend.errors import bad_request
from frontend.protocol.chat import ChatMessage, FunctionCall, ToolCall
from frontend.protocol.messages import InputBlock, MessageParam


def chat_messages(messages: Sequence[MessageParam], system: str | list[InputBlock] | None) -> list[ChatMessage]:
    """Raises a 400 that names what a text model cannot take."""
    if not messages:
        raise bad_request("messages must have at least one message.", "messages")
    chat: list[ChatMessage] = []
    if system:
        chat.append(ChatMessage(role="system", content=_text(system, "system")))
    uses: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        if isinstance(message.content, str):
            chat.append(ChatMessage(role=message.role, content=_text(message.content, where)))
        elif message.role == "assistant":
            chat.append(_assistant(message.content, where))
            uses |= {call.id or "" for call in chat[-1].tool_calls or ()}
        else:
            chat += _user(message.content, where, uses)
    if messages[-1].role == "assistant" and chat[-1].tool_calls:
        raise bad_request("The tool_use of the last message must be followed by a tool_result.", "messages")
    return chat


def _assistant(blocks: list[InputBlock], where: str) -> ChatMessage:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if block.type == "tool_use":
            calls.append(_call(block, place))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":  # of another server, which alone can read it
            texts.append(_text_of(block, place))
    text = "".join(texts)
    if not calls and not text.strip():
        raise bad_request(f"{where} must have text.", where)
    return ChatMessage(
        role="assistant",
        content=text,
        reasoning_content="".join(thoughts) or None,
        tool_calls=calls or None,
    )


def _user(blocks: list[InputBlock], where: str, uses: set[str]) -> list[ChatMessage]:
    """`uses`: the ids of the tool uses so far."""
    chat: list[ChatMessage] = []
    texts: list[InputBlock] = []
    for index, block in enumerate(blocks):
        if block.type != "tool_result":
            texts.append(block)
            continue
        place = f"{where}[{index}]"
        if block.tool_use_id not in uses:
            raise bad_request(
                f"{place}.tool_use_id must be the id of a tool_use before it, not {(block.tool_use_id or '')[:128]!r}.",
                f"{place}.tool_use_id",
            )
        parts = block.content if isinstance(block.content, list) else []
        lines = [_text_of(part, f"{place}.content[{number}]") for number, part in enumerate(parts)]
        result = block.content if isinstance(block.content, str) else "\n".join(lines)
        chat.append(ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=result))
    if texts or not chat:
        chat.append(ChatMessage(role="user", content=_text(texts, where)))
    return chat


def _call(block: InputBlock, where: str) -> ToolCall:
    if not block.id or not block.name:
        raise bad_request(f"{where} must have an id and a name.", where)
    arguments = msgspec.json.encode(block.input or {}).decode()
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _text(content: str | list[InputBlock], where: str) -> str:
    """Blocks are joined by line breaks, as parts of a chat's messages are."""
    parts = [content] if isinstance(content, str) else [_text_of(block, where) for block in content]
    if not any(part.strip() for part in parts):
        raise bad_request(f"{where} must have text.", where)
    return "\n".join(parts)


def _text_of(block: InputBlock, where: str) -> str:
    if block.type != "text" or block.text is None:
        raise bad_request(f"{where} must be text, not {block.type[:64]!r}: this model takes text only.", where)
    return block.text
