"""The base of all formats: runs what a format reads whenever text arrives."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.events import Event

ToolSchemas = Mapping[str, Mapping[str, Any]]
"""The request's tools: name to the JSON schema of its parameters."""


class Parser(ABC):
    """Reads one output. A format says in `read` how its text goes; it reads to the end whatever the text is."""

    markers: ClassVar[tuple[str, ...]] = ()
    """Of its markup what may be special tokens, which are part of the text for its sake."""

    def __init__(self, callable_names: Collection[str] | None = None) -> None:
        """`callable_names`: of the only tools that may be called; None: whatever the model calls is a call."""
        self.in_reasoning = False
        self.reasoning_run = 0, 0
        """Where the last run of reasoning begins and where it ends or has come to, its markers included: characters of
        the output."""
        self._cursor = Cursor(callable_names, self.markers)
        self._steps = self.read(self._cursor)

    def feed(self, text: str, start: int | None = None) -> list[Event]:
        """What is certain with this text. `start`: where it stands in the output, unless it is behind the last one."""
        self._cursor.feed(text, start)
        next(self._steps)
        if self.in_reasoning:
            self.reasoning_run = self.reasoning_run[0], self._cursor.num_decided
        return self._cursor.take_events()

    def finish(self) -> list[Event]:
        """The text has ended: what was held back comes out."""
        self._cursor.end()
        for _ in self._steps:
            raise AssertionError("A format waits for more text than there is.")
        self._cursor.flush()
        return self._cursor.take_events()

    def _begin_reasoning(self, start: int) -> None:
        self.in_reasoning = True
        self.reasoning_run = start, start

    def _end_reasoning(self) -> None:
        """What is decided so far ends with the reasoning."""
        if self.in_reasoning:
            self.in_reasoning = False
            self.reasoning_run = self.reasoning_run[0], self._cursor.num_decided

    @abstractmethod
    def read(self, cursor: Cursor) -> Steps[None]:
        """The format, as a generator that takes text from the cursor and says what it is."""


class ToolParser(Parser):
    """Finds calls; all else is content."""

    openings: ClassVar[tuple[str, ...]] = ()
    """What the first call begins with wherever it stands, what models write first; empty: a call stands at the
    beginning of the output only."""
    other_begins: ClassVar[tuple[str, ...]] = ()
    """What also begins a call wherever it stands, but not as `calls` goes on: a text under a grammar has none of it."""

    def __init__(self, tools: ToolSchemas, *, is_restricted: bool = False) -> None:
        """`is_restricted`: a call of any other tool is no call."""
        self._tools = tools
        super().__init__(frozenset(tools) if is_restricted else None)

    @classmethod
    @abstractmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        """What may follow an opening, to the end of the calls: one call, or several where `many`. Raises `CannotBind`
        where this format cannot express a tool's schema."""


class ReasoningParser(Parser):
    """Finds reasoning; all else is content."""

    start: ClassVar[str]
    """The marker that begins it."""

    @classmethod
    @abstractmethod
    def thinking_markers(cls, prompt: str) -> tuple[str, str] | None:
        """What begins and what ends the reasoning of an output that continues `prompt`: nothing begins it where it is
        reasoning from the first token on. None: it has no reasoning."""

    def __init__(self, prompt: str, *, is_thinking_off: bool = False) -> None:
        """`prompt`: what the output continues, for it may end within the reasoning. `is_thinking_off`: otherwise there
        is none."""
        self._prompt = prompt.rstrip()
        self._is_thinking_off = is_thinking_off
        super().__init__()

    @classmethod
    @abstractmethod
    def reasoning(cls, builder: GrammarBuilder, prompt: str, *, is_thinking_off: bool = False) -> str:
        """All that comes before the answer to this prompt; empty: nothing. `is_thinking_off`: what a prompt has begun
        ends at once."""
