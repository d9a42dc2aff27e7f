"""Hermes and Qwen: `<tool_call>` around a JSON object with `name` and `arguments`, once for each call."""

from collections.abc import Sequence
from typing import ClassVar

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls
from frontend.parsers.call_json import calls_of
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
            yield from cursor.skip_space()
            body = yield from cursor.json_value()
            calls = None if body is None else calls_of(body)
            if calls is None or not (yield from self._is_over(cursor)):
                cursor.reject()
                continue
            cursor.calls(calls)

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        """Whether the end marker follows, or nothing at all: it may have been the token that ended the output."""
        yield from cursor.skip_space()
        return (yield from cursor.at_end()) or (yield from cursor.skip_any(self.ends)) is not None
