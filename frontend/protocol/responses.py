"""`/v1/responses`: the request and the response. The events of a stream are in `response_events`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from frontend.protocol.chat import CallMode, ContentPart, Role
from frontend.protocol.structure import StructureFields


class InputItem(msgspec.Struct, kw_only=True):
    """A message, a call, what a call gave, reasoning, or a reference to an item of an earlier response. Which fields go
    together is checked later, with a sentence for the user."""

    type: str | None = None
    """Without one an item is a message, or, where there is nothing but an `id`, a reference."""
    id: str | None = None
    role: Role | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[ContentPart] | None = None


class TextFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the answer has to be; a schema stands here beside its name."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: Any = None
    strict: bool | None = None


class TextSettings(msgspec.Struct, kw_only=True):
    format: TextFormat = msgspec.field(default_factory=lambda: TextFormat(type="text"))
    verbosity: str | None = None


class CustomToolFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the input of a custom tool is: `text`, or what a `grammar` says. Which fields go together is checked later,
    with a sentence for the user."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class ResponseTool(msgspec.Struct, kw_only=True):
    """A function, or a custom tool, whose input is text; others are told apart later, with a sentence for the user."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: CustomToolFormat | UnsetType | None = UNSET

    @property
    def is_custom(self) -> bool:
        return self.type == "custom"


class FunctionReference(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of the request's tools, by its name. Other types than functions are told apart later."""

    type: str
    name: str | None = None


class FunctionChoice(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The one function to call (type `function`, with `name`), or those that may be called (type `allowed_tools`, with
    `mode` and `tools`). Which fields go together is checked later, with a sentence for the user."""

    type: str
    name: str | None = None
    mode: CallMode | None = None
    tools: list[FunctionReference] | None = None


class ReasoningSettings(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Given: an answer's reasoning stands in its item's summary, in the model's own words, and not in its content."""
    max_tokens: int | None = None
    """Another name of `thinking_token_budget`."""


class ResponsesRequest(StructureFields, kw_only=True):
    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    seed: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    thinking_token_budget: int | None = None
    text: TextSettings | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningSettings | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: str | None = None
    conversation: Any = None
    prompt: Any = None
    prompt_logprobs: Any = None
    use_beam_search: Any = None
    metadata: dict[str, str] | None = None
    # Accepted because clients send them; none changes what is generated here.
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None


class RetrieveQuery(msgspec.Struct, kw_only=True):
    """What may stand behind the path of a stored response."""

    stream: Annotated[bool, Meta(description="The response's events, from the first on, instead of the response.")] = (
        False
    )
    starting_after: (
        Annotated[int, Meta(ge=0, lt=2**53, description="With `stream`: the number of the last event to leave out.")]
        | UnsetType
    ) = UNSET


class OutputTopLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class OutputLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[OutputTopLogprob]


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[OutputLogprob] = []


ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class FunctionCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    """What the call's output names it by."""
    name: str
    arguments: str
    status: ItemStatus


class CustomToolCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus


CallItem = FunctionCallItem | CustomToolCallItem


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(msgspec.Struct, kw_only=True, tag_field="type", tag="summary_text"):
    text: str


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    summary: list[SummaryText]
    content: list[ReasoningText]
    status: ItemStatus


OutputItem = OutputMessage | FunctionCallItem | CustomToolCallItem | ReasoningItem


class InputTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, kw_only=True):
    reason: Literal["max_output_tokens"]


class ResponseFailure(msgspec.Struct, kw_only=True):
    code: str
    message: str


class Response(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: bool
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningSettings
    store: bool
    temperature: float | None
    text: TextSettings
    tool_choice: str | FunctionChoice
    tools: list[ResponseTool]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class DeletedResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool
