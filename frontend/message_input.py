"""`/v1/messages`: its request as the chat request that means the same."""

from frontend.errors import ApiError, bad_request
from frontend.protocol.chat import ChatCompletionRequest, ChatMessage, ContentPart
from frontend.protocol.messages import CountTokensRequest, MessagesRequest


def as_chat(asked: CountTokensRequest) -> ChatCompletionRequest:
    """Raises a 400 for what a text model cannot take. A last message of the assistant is continued."""
    if asked.tools:
        raise bad_request("tools is not supported here: use /v1/chat/completions.", "tools")
    if asked.thinking is not None and asked.thinking.type != "disabled":
        raise bad_request("thinking must be disabled: it is not supported.", "thinking")
    if not asked.messages:
        raise bad_request("messages must have at least one message.", "messages")
    system: list[ChatMessage] = []
    if asked.system:
        system.append(ChatMessage(role="system", content=_checked(asked.system, "system")))
    turns = [
        ChatMessage(role=message.role, content=_checked(message.content, f"messages[{index}].content"))
        for index, message in enumerate(asked.messages)
    ]
    return ChatCompletionRequest(
        messages=system + turns, continue_final_message=asked.messages[-1].role == "assistant" or None
    )


def as_chat_to_answer(asked: MessagesRequest) -> ChatCompletionRequest:
    """The same with what is said of the answer."""
    chat = as_chat(asked)
    chat.max_tokens = asked.max_tokens
    chat.temperature, chat.top_k, chat.top_p = asked.temperature, asked.top_k, asked.top_p
    chat.stop = asked.stop_sequences
    return chat


def own_names(error: ApiError) -> ApiError:
    """An error about a chat's field as one about this endpoint's field."""
    if error.param != "stop":
        return error
    return bad_request(error.message.replace("stop", "stop_sequences", 1), "stop_sequences")


def _checked(content: str | list[ContentPart], where: str) -> str | list[ContentPart]:
    parts = [content] if isinstance(content, str) else [_text_of(part, where) for part in content]
    if not any(part.strip() for part in parts):
        raise bad_request(f"{where} must have text.", where)
    return content


def _text_of(part: ContentPart, where: str) -> str:
    if part.type != "text" or part.text is None:
        raise bad_request(f"{where} must be text, not {part.type[:64]!r}: this model takes text only.", where)
    return part.text
