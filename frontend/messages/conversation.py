"""Anthropic's messages of blocks as the messages of a chat.

Results of tools are blocks of the user's message there, and messages of their own here. An answer's own blocks are
taken back as they were given.
"""

from collections.abc import Sequence

import msgspec

from frontend.errors import bad_request
from frontend.protocol.chat import ChatMessage, FunctionCall, ToolCall
from frontend.protocol.messages import InputBlock, MessageParam


def chat_messages(messages: Sequence[MessageParam], system: str | list[InputBlock] | None) -> list[ChatMessage]:
    """Turns of one role that follow each other are one turn, and an assistant's turn without anything is left out.

    Raises a 400 that names what a text model cannot take.
    """
    if not messages:
        raise bad_request("messages must have at least one message.", "messages")
    chat: list[ChatMessage] = []
    if system_text := "\n".join(_texts(system or (), "system")):
        chat.append(ChatMessage(role="system", content=system_text))
    uses: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        if message.role == "assistant":
            turns = _assistant(message.content, where)
            uses |= {call.id or "" for turn in turns for call in turn.tool_calls or ()}
        elif message.role == "system" or isinstance(message.content, str):
            turns = [ChatMessage(role=message.role, content=_text(message.content, where))]
        else:
            turns = _user(message.content, where, uses)
        for turn in turns:
            _add_turn(chat, turn)
    if not chat:
        raise bad_request("messages must have a message that is not empty.", "messages")
    if messages[-1].role == "assistant" and chat[-1].tool_calls:
        raise bad_request("The tool_use of the last message must be followed by a tool_result.", "messages")
    return chat


def _add_turn(chat: list[ChatMessage], turn: ChatMessage) -> None:
    """Many templates want users and assistants to take turns."""
    last = chat[-1] if chat else None
    if last is None or last.role != turn.role or turn.role not in ("user", "assistant"):
        chat.append(turn)
    elif turn.role == "user":
        last.content = f"{last.content}\n{turn.content}"
    else:
        last.content = f"{last.content}{turn.content}"
        last.reasoning_content = f"{last.reasoning_content or ''}{turn.reasoning_content or ''}" or None
        last.tool_calls = [*(last.tool_calls or ()), *(turn.tool_calls or ())] or None


def _assistant(content: str | list[InputBlock], where: str) -> list[ChatMessage]:
    """One message, or none where there is nothing in it."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    blocks = [InputBlock(type="text", text=content)] if isinstance(content, str) else content
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if block.type == "tool_use":
            calls.append(_call(block, place))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":  # of another server, which alone can read it
            texts.append(_text_of(block, place))
    text, reasoning = "".join(texts), "".join(thoughts)
    if not (text or reasoning or calls):
        return []
    return [ChatMessage(role="assistant", content=text, reasoning_content=reasoning or None, tool_calls=calls or None)]


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
        chat.append(ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=_result(block, place)))
    if texts or not chat:
        chat.append(ChatMessage(role="user", content=_text(texts, where)))
    return chat


def _result(block: InputBlock, where: str) -> str:
    """A message of a tool has no mark of an error: its text says it."""
    text = "\n".join(_texts(block.content or (), f"{where}.content"))
    if block.is_error and not text.lower().startswith("error"):
        return f"Error: {text}" if text else "Error"
    return text


def _call(block: InputBlock, where: str) -> ToolCall:
    if not block.id or not block.name:
        raise bad_request(f"{where} must have an id and a name.", where)
    arguments = msgspec.json.encode(block.input or {}).decode()
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _text(content: str | list[InputBlock], where: str) -> str:
    """Blocks are joined by line breaks."""
    texts = _texts(content, where)
    if not any(text.strip() for text in texts):
        raise bad_request(f"{where} must have text.", where)
    return "\n".join(texts)


def _texts(content: str | Sequence[InputBlock], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [_text_of(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _text_of(block: InputBlock, where: str) -> str:
    if block.type != "text" or block.text is None:
        raise bad_request(f"{where} must be text, not {block.type[:64]!r}: this model takes text only.", where)
    return block.text
