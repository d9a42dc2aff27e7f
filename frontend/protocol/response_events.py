"""The events of a streamed response, under OpenAI's names."""

import msgspec

from frontend.protocol.responses import OutputLogprob, OutputMessage, OutputText, Response


class _Event(msgspec.Struct, kw_only=True, tag_field="type"):
    sequence_number: int


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


class OutputItemAdded(_Event, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: OutputMessage


class OutputItemDone(_Event, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: OutputMessage


class _PartEvent(_Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int


class ContentPartAdded(_PartEvent, kw_only=True, tag="response.content_part.added"):
    part: OutputText


class ContentPartDone(_PartEvent, kw_only=True, tag="response.content_part.done"):
    part: OutputText


class OutputTextDelta(_PartEvent, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[OutputLogprob]


class OutputTextDone(_PartEvent, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[OutputLogprob]


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | ContentPartDone
    | OutputItemDone
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
)
