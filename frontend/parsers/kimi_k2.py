"""Kimi K2: a section of calls; each has an id such as `functions.look:0`, which holds the name, and its arguments."""

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.call_json import arguments_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.sectioned import SectionedParser

_ARGUMENTS = "<|tool_call_argument_begin|>"


class KimiK2(SectionedParser):
    section_begin = "<|tool_calls_section_begin|>"
    openings = (section_begin,)
    section_end = "<|tool_calls_section_end|>"
    begin = "<|tool_call_begin|>"
    end = "<|tool_call_end|>"
    other_begins = (begin,)
    markers = (section_begin, section_end, begin, end, _ARGUMENTS)

    @classmethod
    def _call_expression(cls, builder: GrammarBuilder, tool: BoundTool) -> str:
        arguments = tool.arguments(builder)
        head = f"{builder.text(f'functions.{tool.name}:')} {builder.terminal('/[0-9]{1,3}/')}"
        return f"{head} {builder.marker(_ARGUMENTS)} {arguments}"

    def _read_call(self, cursor: Cursor) -> Steps[bool]:
        """The id goes back to the model, which counts on it."""
        call_id = ((yield from cursor.until(_ARGUMENTS)) or "").strip()
        name = call_id.removeprefix("functions.").partition(":")[0]
        yield from cursor.skip_space()
        body = yield from cursor.json_value()
        arguments = None if body is None else arguments_of(body)
        is_over = yield from self._is_over(cursor)
        if not name or arguments is None or not is_over:
            return False
        return cursor.call(name, arguments, call_id)
