"""Calls in a section: a marker before the first call and one after the last, and markers of each call within."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser


class SectionedParser(ToolParser):
    """A format says what the markers are and how a call goes."""

    section_begin: ClassVar[str]
    section_end: ClassVar[str]
    begin: ClassVar[str]
    end: ClassVar[str]

    def read(self, cursor: Cursor) -> Steps[None]:
        while (yield from cursor.content_until((self.section_begin, self.begin))) is not None:
            yield from cursor.skip_space()
            yield from cursor.skip(self.begin)
            goes_on = True
            while goes_on:
                if not (yield from self._read_call(cursor)):
                    cursor.reject()
                    break
                yield from cursor.skip_space()
                goes_on = yield from cursor.skip(self.begin)
            else:
                if (yield from cursor.skip(self.section_end)):
                    cursor.drop()
                else:
                    cursor.reject()

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        one = builder.any_of([cls._call_expression(builder, tool) for tool in tools])
        call = f"({builder.marker(cls.begin)} {one} {builder.marker(cls.end)})"
        return f"{call}{'+' if many else ''} {builder.marker(cls.section_end)}"

    @classmethod
    @abstractmethod
    def _call_expression(cls, builder: GrammarBuilder, tool: BoundTool) -> str:
        """A call between its two markers."""

    @abstractmethod
    def _read_call(self, cursor: Cursor) -> Steps[bool]:
        """Whether what follows the begin marker was a call; it is emitted then."""

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        """Whether the call's end marker follows, or what comes after that, or nothing at all."""
        yield from cursor.skip_space()
        if (yield from cursor.skip(self.end)) or (yield from cursor.at_end()):
            return True
        return (yield from cursor.comes_next((self.begin, self.section_end)))
