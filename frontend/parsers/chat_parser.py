"""One output's way through the reasoning parser and then the tool parser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.events import Content, Event
from frontend.parsers.gpt_oss import Harmony
from frontend.parsers.parser import Parser, ReasoningParser, ToolParser, ToolSchemas
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS


class _Reasoning(Protocol):
    in_reasoning: bool
    reasoning_run: tuple[int, int]

    def feed(self, text: str) -> list[Event]: ...
    def finish(self) -> list[Event]: ...


class ChatParser:
    """Text in, events out."""

    def __init__(self, reasoning: _Reasoning | None, tools: Parser | None, *, is_call_forced: bool = False) -> None:
        """`is_call_forced`: there is no content but what was cut off of a call, which is left out."""
        self._reasoning = reasoning
        self._tools = tools
        self._is_call_forced = is_call_forced
        self._num_chars = 0

    @property
    def in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.in_reasoning

    @property
    def reasoning_run(self) -> tuple[int, int]:
        """As a `Parser` has it."""
        return (0, 0) if self._reasoning is None else self._reasoning.reasoning_run

    def feed(self, text: str) -> list[Event]:
        """What is certain with this text. Content says where it stands in the output."""
        events: list[Event] = (
            [Content(text, self._num_chars)] if self._reasoning is None else self._reasoning.feed(text)
        )
        self._num_chars += len(text)
        return events if self._tools is None else self._find_calls(self._tools, events)

    def finish(self) -> list[Event]:
        events = [] if self._reasoning is None else self._reasoning.finish()
        if self._tools is not None:
            events = self._find_calls(self._tools, events) + self._tools.finish()
        return [event for event in events if not (self._is_call_forced and isinstance(event, Content))]

    def _find_calls(self, tools: Parser, events: list[Event]) -> list[Event]:
        found: list[Event] = []
        for event in events:
            if isinstance(event, Content):
                found += tools.feed(event.text, event.start)
            else:
                found.append(event)
        return found


_NO_CALL = r"/[\s\x1c-\x1f]*[^\[{\s\x1c-\x1f](.|\n)*/"
"""Where nothing but its place marks a call: a text that begins with none of what calls begin with. Some control
characters are white space for a parser and not for a regular expression."""


@dataclass(frozen=True, slots=True)
class ParserPlan:
    """The formats of a server's model."""

    tool_format: str | None = None
    reasoning_format: str | None = None
    is_thinking_off: bool = False
    """Whether nothing may be thought; only under a grammar, which sees to it."""

    def without_reasoning(self) -> "ParserPlan":
        """Harmony stays: its channels are more than reasoning."""
        return self if self.reasoning_format == HARMONY else ParserPlan(self.tool_format, None)

    def thinking_markers(self, prompt: str) -> tuple[str, str] | None:
        """What begins (nothing: it has begun) and what ends the reasoning behind a prompt; None: there is none."""
        if self.reasoning_format is None or self.is_thinking_off:
            return None
        markers: tuple[str, str] | None = REASONING_FORMATS[self.reasoning_format].load().thinking_markers(prompt)
        return markers

    def calls(self, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        """The grammar of calls, from what opens them. Raises `CannotBind`."""
        assert self.tool_format is not None
        if self.tool_format == HARMONY:
            return Harmony.calls(builder, tools)
        kind = _tool_class(self.tool_format)
        calls = kind.calls(builder, tools, many)
        return f"{builder.marker(kind.openings[0])} {calls}" if kind.openings else calls

    def output(self, builder: GrammarBuilder, prompt: str, *, answer: str | None, calls: str | None) -> str:
        """The grammar of a whole output: reasoning, then one of the two that are given."""
        if answer is not None and self.reasoning_format == HARMONY:
            answer = Harmony.answer(builder, answer)
        after = builder.any_of([one for one in (calls, answer) if one is not None])
        return f"{self._reasoning(builder, prompt)} {after}"

    def text_with_calls(self, builder: GrammarBuilder, prompt: str, tools: Sequence[BoundTool], many: bool) -> str:
        """The grammar of an output that is free but for its calls. Raises `CannotBind`."""
        assert self.tool_format is not None
        if self.tool_format == HARMONY:
            return f"{self._reasoning(builder, prompt)} ({Harmony.calls(builder, tools)} | {Harmony.text(builder)})"
        kind = _tool_class(self.tool_format)
        calls = kind.calls(builder, tools, many)
        begins = (*kind.openings, *kind.other_begins)
        without = (*begins, *self._thinking_begins())
        text = builder.anything_without(without)
        if kind.openings:
            openings = builder.any_of(
                [
                    builder.anything_until(opening, without=[other for other in without if other != opening])
                    for opening in kind.openings
                ]
            )
            free = f"({openings} {calls}){'*' if many else '?'} {text}"
        else:
            free = f"({calls} | {builder.terminal(f'{text} & {_NO_CALL}')})?"
        return f"{self._reasoning(builder, prompt)} {free}"

    def _reasoning(self, builder: GrammarBuilder, prompt: str) -> str:
        if self.reasoning_format is None:
            return ""
        if self.reasoning_format == HARMONY:
            return "" if self.is_thinking_off else Harmony.reasoning(builder)
        kind = _reasoning_class(self.reasoning_format)
        return kind.reasoning(builder, prompt, is_thinking_off=self.is_thinking_off)

    def _thinking_begins(self) -> tuple[str, ...]:
        """What must not stand in a text because it would look like reasoning."""
        if self.reasoning_format is None or not self.is_thinking_off:
            return ()
        return () if self.reasoning_format == HARMONY else (_reasoning_class(self.reasoning_format).start,)

    def for_request(
        self, prompt: str, tools: ToolSchemas, *, is_restricted: bool = False, is_call_forced: bool = False
    ) -> "ParserMaker | None":
        """`is_restricted`: no other tool than these may be called; `is_call_forced`: one of them must be. None: the
        outputs are content as they are."""
        if self.reasoning_format is None and (self.tool_format is None or not tools):
            return None
        return ParserMaker(self, prompt, tools, is_restricted, is_call_forced)


@dataclass(frozen=True, slots=True)
class ParserMaker:
    """Makes a parser for each of a request's outputs."""

    plan: ParserPlan
    prompt: str
    tools: ToolSchemas = field(default_factory=dict)
    is_restricted: bool = False
    is_call_forced: bool = False

    def make(self) -> ChatParser:
        if self.plan.reasoning_format == HARMONY:
            names = frozenset(self.tools) if self.is_restricted else None
            harmony = Harmony(wants_calls=bool(self.tools), callable_names=names)
            return ChatParser(harmony, None, is_call_forced=self.is_call_forced)
        reasoning = tools = None
        if self.plan.reasoning_format is not None:
            kind = _reasoning_class(self.plan.reasoning_format)
            reasoning = kind(self.prompt, is_thinking_off=self.plan.is_thinking_off)
        if self.plan.tool_format is not None and self.tools:
            tools = _tool_class(self.plan.tool_format)(self.tools, is_restricted=self.is_restricted)
        return ChatParser(reasoning, tools, is_call_forced=self.is_call_forced)

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
