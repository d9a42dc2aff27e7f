"""Llama 3: the output is a JSON object with `name` and `parameters`, or several with `;` between, and nothing else.

Nothing marks a call but its place at the beginning (or after `<|python_tag|>`), so it must name a tool of the request.
"""

from collections.abc import Sequence

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls, repeated
from frontend.parsers.call_json import calls_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser


class Llama3Json(ToolParser):
    markers = ("<|python_tag|>",)
    other_begins = markers

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        return repeated(json_calls(builder, tools, "parameters"), builder.text("; "), many)

    def read(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.skip_space()
        yield from cursor.skip_any(self.markers)
        yield from self._read_calls(cursor)
        while (yield from cursor.content_until(self.markers)) is not None:
            yield from self._read_calls(cursor)

    def _read_calls(self, cursor: Cursor) -> Steps[None]:
        """Calls for as long as one follows the other."""
        while True:
            yield from cursor.skip_space()
            body = yield from cursor.json_value()
            calls = None if body is None else calls_of(body)
            if calls is None or any(name not in self._tools for name, _ in calls):
                cursor.reject()
                return
            cursor.calls(calls)
            yield from cursor.skip_space()
            yield from cursor.skip(";")
