"""`/v1/chat/completions`: the request, the response and the chunks of a stream."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from frontend.protocol.common import GenerationRequest, PromptLogprobs, Usage

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
"""`function` is the older name of `tool`."""
CALL_MODES = ("auto", "required")
CallMode = Annotated[str, msgspec.Meta(extra_json_schema={"enum": CALL_MODES})]
"""Checked later, with a sentence for the user."""


THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates whose models think by request."""


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message; the types other than text are told apart later, with a sentence for the user."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(msgspec.Struct, kw_only=True):
    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    """Another name of `reasoning`."""
    function_call: FunctionCall | None = None
    """The older form of a single `tool_calls`."""


class FunctionDefinition(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, kw_only=True):
    name: str


class ToolReference(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of the request's tools, by its name. Other types than functions are told apart later."""

    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct, kw_only=True):
    mode: CallMode
    tools: list[ToolReference]


class ToolChoice(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The one function to call (type `function`), or those that may be called (type `allowed_tools`). Which fields go
    together is checked later, with a sentence for the user."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    """`none` switches thinking off; other values change nothing."""
    # Accepted because clients send them; none changes what is generated here.
    metadata: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None

    @property
    def max_answer_tokens(self) -> int | None:
        """Under the newer of its two names where both are given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def template_variables(self) -> dict[str, Any]:
        """`chat_template_kwargs`, whose switches of thinking have the last word."""
        given = self.chat_template_kwargs or {}
        is_off = self.reasoning_effort == "none" and not given.keys() & set(THINKING_SWITCHES)
        return {**dict.fromkeys(THINKING_SWITCHES, False), **given} if is_off else given

    @property
    def is_thinking_off(self) -> bool:
        return any(self.template_variables.get(name) is False for name in THINKING_SWITCHES)


class TopLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerToolCall(msgspec.Struct, kw_only=True):
    """A call that the model made; `index` in streams only."""

    index: int | UnsetType = UNSET
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
