"""Granite 3: `<|tool_call|>` or `<tool_call>` before a JSON array of calls. Granite 4 writes what Hermes does."""

from collections.abc import Sequence

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls, repeated
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.hermes import Hermes


class Granite(Hermes):
    begins = ("<|tool_call|>", "<tool_call>")
    openings = begins
    ends = ("</tool_call>",)
    markers = (*begins, *ends)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        calls = repeated(json_calls(builder, tools, "arguments"), builder.text(", "), many)
        return f"{builder.text('[')} {calls} {builder.text(']')}"

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        yield from cursor.skip_end(self.ends)
        return True
