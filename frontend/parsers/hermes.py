"""Hermes and Qwen: `<tool_call>` around a JSON object with `name` and `arguments`, once for each call.

Models also write several objects into one, or begin the next one where one should end.
"""

from collections.abc import Sequence
from typing import ClassVar

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls
from frontend.parsers.call_json import Calls, calls_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser


class Hermes(ToolParser):
    begins: ClassVar[tuple[str, ...]] = ("<tool_call>",)
    openings = begins
    ends: ClassVar[tuple[str, ...]] = ("</tool_call>",)
    markers = (*begins, *ends)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        line_break = builder.text("\n")
        call = f"{line_break} {json_calls(builder, tools, 'arguments')} {line_break} {builder.marker(cls.ends[0])}"
        return f"{call} ({line_break} {builder.marker(cls.openings[0])} {call})*" if many else call

    def read(self, cursor: Cursor) -> Steps[None]:
        while (yield from cursor.content_until(self.begins)) is not None:
            calls = yield from self._calls(cursor)
            if calls and (yield from self._is_over(cursor)):
                cursor.calls(calls)
            else:
                cursor.reject()

    def _calls(self, cursor: Cursor) -> Steps[Calls]:
        """Those that follow one another with nothing but white space between."""
        calls: Calls = []
        while True:
            end = cursor.position
            yield from cursor.skip_space()
            body = yield from cursor.json_value()
            found = None if body is None else calls_of(body)
            if found is None:
                if calls:
                    cursor.go_back(end)
                return calls
            calls += found

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        """Whether the end marker follows, or the next call, or nothing at all: the marker may have been the token that
        ended the output."""
        yield from cursor.skip_space()
        if (yield from cursor.at_end()) or (yield from cursor.skip_any(self.ends)) is not None:
            return True
        return (yield from cursor.comes_next(self.begins))
