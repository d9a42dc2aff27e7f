"""Phi 4: a JSON array of calls between `<|tool_call|>` and `<|/tool_call|>`, or, the older form, after `functools`."""

from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.hermes import Hermes


class Phi4(Hermes):
    begins = ("<|tool_call|>", "functools")
    ends = ("<|/tool_call|>",)
    markers = ("<|tool_call|>", "<|/tool_call|>")

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        yield from cursor.skip_any(self.ends)
        return True
