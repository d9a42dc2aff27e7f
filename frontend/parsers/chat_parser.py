"""One output's way through the reasoning parser and then the tool parser."""

from dataclasses import dataclass, field
from typing import Protocol

from frontend.parsers.events import Content, Event
from frontend.parsers.gpt_oss import Harmony
from frontend.parsers.parser import Parser, ReasoningParser, ToolParser, ToolSchemas
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS


class _Reasoning(Protocol):
    in_reasoning: bool

    def feed(self, text: str) -> list[Event]: ...
    def finish(self) -> list[Event]: ...


class ChatParser:
    """Text in, events out."""

    def __init__(self, reasoning: _Reasoning | None, tools: Parser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.in_reasoning

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = [Content(text)] if self._reasoning is None else self._reasoning.feed(text)
        return events if self._tools is None else self._find_calls(self._tools, events)

    def finish(self) -> list[Event]:
        events = [] if self._reasoning is None else self._reasoning.finish()
        return events if self._tools is None else self._find_calls(self._tools, events) + self._tools.finish()

    def _find_calls(self, tools: Parser, events: list[Event]) -> list[Event]:
        found: list[Event] = []
        for event in events:
            if isinstance(event, Content):
                found += tools.feed(event.text)
            else:
                found.append(event)
        return found


@dataclass(frozen=True, slots=True)
class ParserPlan:
    """The formats of a server's model."""

    tool_format: str | None = None
    reasoning_format: str | None = None

    def without_reasoning(self) -> "ParserPlan":
        """Harmony stays: its channels are more than reasoning."""
        return self if self.reasoning_format == HARMONY else ParserPlan(self.tool_format, None)

    def thinking_markers(self, prompt: str) -> tuple[str, str] | None:
        """What begins (nothing: it has begun) and what ends the reasoning behind a prompt; None: there is none."""
        if self.reasoning_format is None:
            return None
        markers: tuple[str, str] | None = REASONING_FORMATS[self.reasoning_format].load().thinking_markers(prompt)
        return markers

    def for_request(self, prompt: str, tools: ToolSchemas) -> "ParserMaker | None":
        """None: the request's outputs are content as they are."""
        if self.reasoning_format is None and (self.tool_format is None or not tools):
            return None
        return ParserMaker(self, prompt, tools)


@dataclass(frozen=True, slots=True)
class ParserMaker:
    """Makes a parser for each of a request's outputs."""

    plan: ParserPlan
    prompt: str
    tools: ToolSchemas = field(default_factory=dict)

    def make(self) -> ChatParser:
        if self.plan.reasoning_format == HARMONY:
            return ChatParser(Harmony(wants_calls=bool(self.tools)), None)
        reasoning = tools = None
        if self.plan.reasoning_format is not None:
            reasoning = _reasoning_class(self.plan.reasoning_format)(self.prompt)
        if self.plan.tool_format is not None and self.tools:
            tools = _tool_class(self.plan.tool_format)(self.tools)
        return ChatParser(reasoning, tools)

    @property
    def markers(self) -> frozenset[str]:
        """What must be part of the text, special token or not."""
        markers: set[str] = set()
        if self.plan.reasoning_format is not None:
            markers.update(REASONING_FORMATS[self.plan.reasoning_format].load().markers)
        if self.plan.tool_format is not None and self.tools:
            markers.update(TOOL_FORMATS[self.plan.tool_format].load().markers)
        return frozenset(markers)


def _reasoning_class(name: str) -> type[ReasoningParser]:
    kind: type[ReasoningParser] = REASONING_FORMATS[name].load()
    return kind


def _tool_class(name: str) -> type[ToolParser]:
    kind: type[ToolParser] = TOOL_FORMATS[name].load()
    return kind
