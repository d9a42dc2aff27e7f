"""Granite 3: `<|tool_call|>` or `<tool_call>` before a JSON array of calls. Granite 4 writes what Hermes does."""

from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.hermes import Hermes


class Granite(Hermes):
    begins = ("<|tool_call|>", "<tool_call>")
    ends = ("</tool_call>",)
    markers = (*begins, *ends)

    def _is_over(self, cursor: Cursor) -> Steps[bool]:
        yield from cursor.skip_space()
        yield from cursor.skip_any(self.ends)
        return True
