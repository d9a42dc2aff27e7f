"""DeepSeek V3: each call between special tokens, the name before a separator, the arguments after it.

The first V3 writes `function`, the separator, the name and the arguments in a Markdown block; V3.1 name and arguments.
"""

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.call_json import arguments_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.sectioned import SectionedParser

_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = "```"


class DeepSeekV3(SectionedParser):
    section_begin = "<｜tool▁calls▁begin｜>"
    openings = (section_begin,)
    section_end = "<｜tool▁calls▁end｜>"
    begin = "<｜tool▁call▁begin｜>"
    end = "<｜tool▁call▁end｜>"
    other_begins = (begin,)
    markers = (section_begin, section_end, begin, end, _SEPARATOR)

    @classmethod
    def _call_expression(cls, builder: GrammarBuilder, tool: BoundTool) -> str:
        """In V3.1's form."""
        arguments = tool.arguments(builder)
        return f"{builder.text(tool.name)} {builder.marker(_SEPARATOR)} {arguments}"

    def _read_call(self, cursor: Cursor) -> Steps[bool]:
        name = yield from cursor.until(_SEPARATOR)
        yield from cursor.skip_space()
        is_first_form = name == "function" and not (yield from cursor.comes_next("{"))
        if is_first_form:
            name = yield from cursor.until("\n")
            yield from cursor.skip(f"{_FENCE}json")
            yield from cursor.skip_space()
        body = yield from cursor.json_value()
        arguments = None if body is None else arguments_of(body)
        if is_first_form:
            yield from cursor.skip_space()
            yield from cursor.skip(_FENCE)
        is_over = yield from self._is_over(cursor)
        if not name or arguments is None or not is_over:
            return False
        return cursor.call(name.strip(), arguments)
