"""The items of a response while they grow: what they are so far, and the events that tell of it."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from frontend.protocol import response_events as events
from frontend.protocol.response_events import ResponseEvent
from frontend.protocol.responses import (
    CallItem,
    CustomToolCallItem,
    ItemStatus,
    OutputItem,
    OutputLogprob,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)


class TextItem(ABC):
    """One item at its place in the output."""

    prefix: str

    def __init__(self, output_index: int, item_id: str | None = None) -> None:
        self.id = item_id or f"{self.prefix}_{uuid.uuid4().hex}"
        self._output_index = output_index
        self._texts: list[str] = []
        self._logprobs: list[OutputLogprob] = []

    def add(self, text: str, logprobs: list[OutputLogprob]) -> ResponseEvent:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._delta(text, logprobs)

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self._output_index, "content_index": 0}

    @abstractmethod
    def empty(self) -> OutputItem:
        """Before its one part has been added."""

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem:
        """As it is now."""

    @abstractmethod
    def begin(self) -> ResponseEvent:
        """Its one part is added."""

    @abstractmethod
    def _delta(self, text: str, logprobs: list[OutputLogprob]) -> ResponseEvent:
        """The part grows."""

    @abstractmethod
    def end(self) -> Iterator[ResponseEvent]:
        """The part is complete."""


class MessageItem(TextItem):
    prefix = "msg"

    def empty(self) -> OutputItem:
        return OutputMessage(id=self.id, status="in_progress", content=[])

    def item(self, status: ItemStatus) -> OutputItem:
        return OutputMessage(id=self.id, status=status, content=[self._part])

    def begin(self) -> ResponseEvent:
        return events.ContentPartAdded(**self._place, part=OutputText(text=""))

    def _delta(self, text: str, logprobs: list[OutputLogprob]) -> ResponseEvent:
        return events.OutputTextDelta(**self._place, delta=text, logprobs=logprobs)

    def end(self) -> Iterator[ResponseEvent]:
        yield events.OutputTextDone(**self._place, text=self._text, logprobs=self._logprobs)
        yield events.ContentPartDone(**self._place, part=self._part)

    @property
    def _part(self) -> OutputText:
        return OutputText(text=self._text, logprobs=self._logprobs)


class ReasoningContentItem(TextItem):
    """Reasoning as it was written."""

    prefix = "rs"

    def empty(self) -> OutputItem:
        return ReasoningItem(id=self.id, summary=[], content=[], status="in_progress")

    def item(self, status: ItemStatus) -> OutputItem:
        return ReasoningItem(id=self.id, summary=[], content=[ReasoningText(text=self._text)], status=status)

    def begin(self) -> ResponseEvent:
        return events.ContentPartAdded(**self._place, part=ReasoningText(text=""))

    def _delta(self, text: str, logprobs: list[OutputLogprob]) -> ResponseEvent:
        return events.ReasoningTextDelta(**self._place, delta=text)

    def end(self) -> Iterator[ResponseEvent]:
        yield events.ReasoningTextDone(**self._place, text=self._text)
        yield events.ContentPartDone(**self._place, part=ReasoningText(text=self._text))


class ReasoningSummaryItem(TextItem):
    """The same where a summary was asked for, which is what many clients show: nothing is left out of it."""

    prefix = "rs"

    def empty(self) -> OutputItem:
        return ReasoningItem(id=self.id, summary=[], content=[], status="in_progress")

    def item(self, status: ItemStatus) -> OutputItem:
        return ReasoningItem(id=self.id, summary=[SummaryText(text=self._text)], content=[], status=status)

    def begin(self) -> ResponseEvent:
        return events.ReasoningSummaryPartAdded(**self._place, part=SummaryText(text=""))

    def _delta(self, text: str, logprobs: list[OutputLogprob]) -> ResponseEvent:
        return events.ReasoningSummaryTextDelta(**self._place, delta=text)

    def end(self) -> Iterator[ResponseEvent]:
        yield events.ReasoningSummaryTextDone(**self._place, text=self._text)
        yield events.ReasoningSummaryPartDone(**self._place, part=SummaryText(text=self._text))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self._output_index, "summary_index": 0}


def begun_call(item: CallItem) -> CallItem:
    """A call as it was before it had arguments."""
    if isinstance(item, CustomToolCallItem):
        return replace(item, input="", status="in_progress")
    return replace(item, arguments="", status="in_progress")


def call_events(output_index: int, item: CallItem) -> Iterator[ResponseEvent]:
    """A call is there at once: its arguments are one delta."""
    place: dict[str, Any] = {"item_id": item.id, "output_index": output_index}
    if isinstance(item, CustomToolCallItem):
        yield events.CustomToolCallInputDelta(**place, delta=item.input)
        yield events.CustomToolCallInputDone(**place, input=item.input)
        return
    yield events.FunctionCallArgumentsDelta(**place, delta=item.arguments)
    yield events.FunctionCallArgumentsDone(**place, name=item.name, arguments=item.arguments)
