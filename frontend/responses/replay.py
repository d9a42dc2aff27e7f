"""The events of a response, made again from what is kept of it: the same ones that its first reader got."""

from collections.abc import Iterator

from msgspec.structs import replace

from frontend.protocol import response_events as events
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import CallItem, OutputItem, OutputLogprob, OutputMessage, Response
from frontend.protocol.stored_responses import Delta
from frontend.responses.items import (
    MessageItem,
    ReasoningContentItem,
    ReasoningSummaryItem,
    TextItem,
    begun_call,
    call_events,
)


def begun_response(response: Response) -> Response:
    """It as it was before there was any output."""
    return replace(response, status="in_progress", output=[], usage=None, error=None, incomplete_details=None)


def last_event(response: Response) -> ResponseEvent:
    """What tells of its end. There is no event of its own for a cancelled one: its status says it."""
    if response.status == "completed":
        return events.ResponseCompleted(response=response)
    if response.status == "failed":
        return events.ResponseFailed(response=response)
    return events.ResponseIncomplete(response=response)


def replay(response: Response, items: list[OutputItem], deltas: list[list[Delta]]) -> Iterator[ResponseEvent]:
    """The events of an output from the first on, numbered, without the one that ends them.

    `deltas`: as in `StoredResponse`.
    """
    for number, event in enumerate(_events(response, items, deltas)):
        event.sequence_number = number
        yield event


def _events(response: Response, items: list[OutputItem], deltas: list[list[Delta]]) -> Iterator[ResponseEvent]:
    begun = begun_response(response)
    yield events.ResponseCreated(response=begun)
    yield events.ResponseInProgress(response=begun)
    for index, (item, item_deltas) in enumerate(zip(items, deltas, strict=True)):
        if isinstance(item, CallItem):
            yield events.OutputItemAdded(output_index=index, item=begun_call(item))
            yield from call_events(index, item)
        else:
            yield from _text_events(index, item, item_deltas)
        yield events.OutputItemDone(output_index=index, item=item)


def _text_events(index: int, item: OutputItem, deltas: list[Delta]) -> Iterator[ResponseEvent]:
    kind, text, logprobs = _taken_apart(item)
    grown = kind(index, item.id)
    yield events.OutputItemAdded(output_index=index, item=grown.empty())
    yield grown.begin()
    char, entry = 0, 0
    for delta in deltas:
        yield grown.add(text[char : char + delta.num_chars], logprobs[entry : entry + delta.num_logprobs])
        char += delta.num_chars
        entry += delta.num_logprobs
    yield from grown.end()


def _taken_apart(item: OutputItem) -> tuple[type[TextItem], str, list[OutputLogprob]]:
    """Its kind, its text and the log-probabilities of that."""
    assert not isinstance(item, CallItem)
    if isinstance(item, OutputMessage):
        return MessageItem, item.content[0].text, item.content[0].logprobs
    if item.summary:
        return ReasoningSummaryItem, item.summary[0].text, []
    return ReasoningContentItem, item.content[0].text, []
