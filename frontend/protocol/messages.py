"""`/v1/messages`, Anthropic's API: the request, the answer, the events of a stream, and errors."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class InputBlock(msgspec.Struct, kw_only=True):
    """Text, thinking, a use of a tool or its result. Which fields go together is checked later, with a sentence for
    the user."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[InputBlock] | None" = None
    is_error: bool | None = None


class MessageParam(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    """What the system says within a conversation holds from there on."""
    content: str | list[InputBlock]


class Thinking(msgspec.Struct, kw_only=True):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None


class ToolParam(msgspec.Struct, kw_only=True):
    """A tool of the client; those that Anthropic runs itself are told apart later, with a sentence for the user."""

    type: str = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class MessageToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    format: OutputFormat | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True):
    messages: list[MessageParam]
    model: str | None = None
    system: str | list[InputBlock] | None = None
    thinking: Thinking | None = None
    tools: list[ToolParam] | None = None
    tool_choice: MessageToolChoice | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cache_salt: str | None = None
    # Accepted because clients send them; none changes what is generated here.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""
    """Clients want the field; nothing is signed here."""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    """As the model wrote it."""


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    """Those that were computed; what came from the cache is beside it."""
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Message(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
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
    content_block: Block


class TextDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputJsonDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class ContentBlockDelta(_Event, kw_only=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


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
