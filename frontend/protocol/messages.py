"""`/v1/messages`, Anthropic's API: the request, the answer, the events of a stream, and errors."""

from typing import Any, Literal

import msgspec

from frontend.protocol.chat import ContentPart


class MessageParam(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[ContentPart]


class Thinking(msgspec.Struct, kw_only=True):
    type: str


class CountTokensRequest(msgspec.Struct, kw_only=True):
    messages: list[MessageParam]
    model: str | None = None
    system: str | list[ContentPart] | None = None
    thinking: Thinking | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    # Accepted because clients send them; none changes what is generated here.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class TextBlock(msgspec.Struct, kw_only=True):
    type: Literal["text"] = "text"
    text: str


class MessageUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    """Those that were computed; what came from the cache is beside it."""
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence"]


class Message(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct, kw_only=True):
    input_tokens: int


class _Event(msgspec.Struct, kw_only=True, tag_field="type"):
    pass


class MessageStart(_Event, kw_only=True, tag="message_start"):
    message: Message


class ContentBlockStart(_Event, kw_only=True, tag="content_block_start"):
    index: int
    content_block: TextBlock


class TextDelta(msgspec.Struct, kw_only=True):
    type: Literal["text_delta"] = "text_delta"
    text: str


class ContentBlockDelta(_Event, kw_only=True, tag="content_block_delta"):
    index: int
    delta: TextDelta


class ContentBlockStop(_Event, kw_only=True, tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct, kw_only=True):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(_Event, kw_only=True, tag="message_delta"):
    delta: StopDelta
    usage: MessageUsage


class MessageStop(_Event, kw_only=True, tag="message_stop"):
    pass


class MessagesErrorDetail(msgspec.Struct, kw_only=True):
    type: str
    message: str


class MessagesError(_Event, kw_only=True, tag="error"):
    """The body of every status from 400 on, and the event of a failure midway."""

    error: MessagesErrorDetail


MessageEvent = (
    MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | MessagesError
)
