"""Pieces of output as the items of a response, and each step of their making as an event."""

import uuid
from collections.abc import Iterator
from typing import Any

from frontend.output_processor import OutputPiece, TokenLogprobs, runs_of
from frontend.parsers.events import Reasoning, ToolCall
from frontend.protocol import response_events as events
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import (
    CallItem,
    CustomToolCallItem,
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputLogprob,
    OutputTopLogprob,
    ResponsesRequest,
)
from frontend.protocol.stored_responses import Delta
from frontend.responses.custom_tools import custom_names, input_of
from frontend.responses.input import wants_logprobs
from frontend.responses.items import (
    MessageItem,
    ReasoningContentItem,
    ReasoningSummaryItem,
    TextItem,
    begun_call,
    call_events,
)
from frontend.tokenizer import TextTokenizer


class OutputWriter:
    """Whole answers go through it as streams do, so that both have the same items."""

    def __init__(self, asked: ResponsesRequest, tokenizer: TextTokenizer) -> None:
        self.items: list[OutputItem] = []
        self.deltas: list[list[Delta]] = []
        """For each item the events in which its text came."""
        self.is_cut = False
        """Whether the output ended before the model did."""
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs(asked)
        self._custom_names = custom_names(asked.tools)
        wants_summary = asked.reasoning is not None and asked.reasoning.summary is not None
        self._reasoning: type[TextItem] = ReasoningSummaryItem if wants_summary else ReasoningContentItem
        self._open: TextItem | None = None

    def push(self, piece: OutputPiece) -> Iterator[ResponseEvent]:
        """What a piece adds. Its end is told of by `end`."""
        self.is_cut = piece.finish_reason == "length"
        logprobs = self._logprobs_of(piece.logprobs)
        for part in runs_of(piece):
            if isinstance(part, ToolCall):
                yield from self._close("completed")
                yield from self._add_call(part)
            elif isinstance(part, Reasoning):
                yield from self._add_text(self._reasoning, part.text, [])
            else:
                yield from self._add_text(MessageItem, part.text, logprobs)
                logprobs = []

    def end(self) -> Iterator[ResponseEvent]:
        """There is at least one item: an answer without any output is an empty message."""
        if not self.items:
            yield from self._begin(MessageItem)
        yield from self._close("incomplete" if self.is_cut else "completed")

    def _add_text(self, kind: type[TextItem], text: str, logprobs: list[OutputLogprob]) -> Iterator[ResponseEvent]:
        if not isinstance(self._open, kind):
            yield from self._close("completed")
            yield from self._begin(kind)
            if len(self.items) > 1:
                text = text.lstrip()  # what parts it from the item before it
        assert self._open is not None
        self.deltas[-1].append(Delta(len(text), len(logprobs)))
        yield self._open.add(text, logprobs)

    def _begin(self, kind: type[TextItem]) -> Iterator[ResponseEvent]:
        item = self._open = kind(len(self.items))
        yield self._add_item(item.empty())
        yield item.begin()

    def _close(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        if self._open is not None:
            yield from self._open.end()
            yield self._finish_item(self._open.item(status))
            self._open = None

    def _add_call(self, call: ToolCall) -> Iterator[ResponseEvent]:
        shared: dict[str, Any] = {"call_id": call.id, "name": call.name, "status": "completed"}
        item: CallItem
        if call.name in self._custom_names:
            item = CustomToolCallItem(id=f"ctc_{uuid.uuid4().hex}", input=input_of(call.arguments), **shared)
        else:
            item = FunctionCallItem(id=f"fc_{uuid.uuid4().hex}", arguments=call.arguments, **shared)
        index = len(self.items)
        yield self._add_item(begun_call(item))
        yield from call_events(index, item)
        yield self._finish_item(item)

    def _add_item(self, item: OutputItem) -> ResponseEvent:
        self.items.append(item)
        self.deltas.append([])
        return events.OutputItemAdded(output_index=len(self.items) - 1, item=item)

    def _finish_item(self, item: OutputItem) -> ResponseEvent:
        self.items[-1] = item
        return events.OutputItemDone(output_index=len(self.items) - 1, item=item)

    def _logprobs_of(self, tokens: list[TokenLogprobs]) -> list[OutputLogprob]:
        """One entry per token of the text."""
        if not self._wants_logprobs:
            return []
        text, data = self._tokenizer.token_text, self._tokenizer.token_bytes
        return [
            OutputLogprob(
                token=text(token.token_id),
                logprob=token.logprob,
                bytes=list(data(token.token_id)),
                top_logprobs=[
                    OutputTopLogprob(token=text(other), logprob=logprob, bytes=list(data(other)))
                    for other, logprob in token.top
                ],
            )
            for token in tokens
        ]
