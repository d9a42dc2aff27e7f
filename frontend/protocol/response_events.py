"""The events of a streamed response, under OpenAI's names."""

import msgspec

from frontend.protocol.responses import OutputItem, OutputLogprob, OutputText, ReasoningText, Response, SummaryText


class _Event(msgspec.Struct, kw_only=True, tag_field="type"):
    sequence_number: int = 0
    """Counted when it is sent."""


class ResponseCreated(_Event, kw_only=True, tag="response.created"):
    response: Response


class ResponseInProgress(_Event, kw_only=True, tag="response.in_progress"):
    response: Response


class ResponseCompleted(_Event, kw_only=True, tag="response.completed"):
    response: Response


class ResponseIncomplete(_Event, kw_only=True, tag="response.incomplete"):
    response: Response


class ResponseFailed(_Event, kw_only=True, tag="response.failed"):
    response: Response


WHOLE_EVENTS = (ResponseCreated, ResponseInProgress, ResponseCompleted, ResponseIncomplete, ResponseFailed)
"""They have nothing but the whole response, at its beginning or its end."""


class OutputItemAdded(_Event, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class OutputItemDone(_Event, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class _PartEvent(_Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int


class ContentPartAdded(_PartEvent, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class ContentPartDone(_PartEvent, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class OutputTextDelta(_PartEvent, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[OutputLogprob]


class OutputTextDone(_PartEvent, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[OutputLogprob]


class ReasoningTextDelta(_PartEvent, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningTextDone(_PartEvent, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class _SummaryEvent(_Event, kw_only=True):
    item_id: str
    output_index: int
    summary_index: int


class ReasoningSummaryPartAdded(_SummaryEvent, kw_only=True, tag="response.reasoning_summary_part.added"):
    part: SummaryText


class ReasoningSummaryTextDelta(_SummaryEvent, kw_only=True, tag="response.reasoning_summary_text.delta"):
    delta: str


class ReasoningSummaryTextDone(_SummaryEvent, kw_only=True, tag="response.reasoning_summary_text.done"):
    text: str


class ReasoningSummaryPartDone(_SummaryEvent, kw_only=True, tag="response.reasoning_summary_part.done"):
    part: SummaryText


class _CallEvent(_Event, kw_only=True):
    item_id: str
    output_index: int


class FunctionCallArgumentsDelta(_CallEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class FunctionCallArgumentsDone(_CallEvent, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class CustomToolCallInputDelta(_CallEvent, kw_only=True, tag="response.custom_tool_call_input.delta"):
    delta: str


class CustomToolCallInputDone(_CallEvent, kw_only=True, tag="response.custom_tool_call_input.done"):
    input: str


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | ContentPartDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ReasoningSummaryPartAdded
    | ReasoningSummaryTextDelta
    | ReasoningSummaryTextDone
    | ReasoningSummaryPartDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
    | CustomToolCallInputDelta
    | CustomToolCallInputDone
    | OutputItemDone
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
)
