"""Phi 4: a JSON array of calls between `<|tool_call|>` and `<|/tool_call|>`, or, the older form, after `functools`."""

from collections.abc import Sequence

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls, repeated
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.hermes import Hermes


class Phi4(Hermes):
    begins = ("<|tool_call|>", "functools")
    openings = begins[:1]
    other_begins = ("functools[", "functools{")  # the name alone is a module of Python's
    ends = ("<|/tool_call|>",)
    markers = ("<|tool_call|>", "<|/tool_call|>")

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        calls = repeated(json_calls(builder, tools, "arguments"), builder.text(", "), many)
        return f"{builder.text('[')} {calls} {builder.text(']')} {builder.marker(cls.ends[0])}"

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        yield from cursor.skip_end(self.ends)
        return True
