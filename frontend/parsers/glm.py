"""GLM 4.5: `<tool_call>` around a name and pairs of `<arg_key>` and `<arg_value>`; texts stand without quotes."""

from collections.abc import Sequence
from typing import Any

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, tagged_arguments
from frontend.parsers.call_json import object_of, value_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser

_BEGIN, _END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GlmTools(ToolParser):
    markers = (_BEGIN, _END, _KEY, _KEY_END, _VALUE, _VALUE_END)
    openings = (_BEGIN,)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        line_break = builder.text("\n")

        def tag(name: str) -> str:
            key = f"{line_break} {builder.marker(_KEY)} {builder.text(name)} {builder.marker(_KEY_END)}"
            return f"{key} {line_break} {builder.marker(_VALUE)}"

        one = builder.any_of(
            [f"{builder.text(tool.name)} {tagged_arguments(builder, tool, tag, _VALUE_END)}" for tool in tools]
        )
        call = f"{one} {line_break} {builder.marker(_END)}"
        return f"{call} ({line_break} {builder.marker(_BEGIN)} {call})*" if many else call

    def read(self, cursor: Cursor) -> Steps[None]:
        while (yield from cursor.content_until((_BEGIN,))) is not None:
            yield from self._read_call(cursor)

    def _read_call(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.skip_space()
        name = yield from cursor.name()
        arguments: dict[str, Any] = {}
        while name:
            yield from cursor.skip_space()
            if (yield from cursor.skip(_END)) or (yield from self._is_cut(cursor, name)):
                cursor.call(name, object_of(arguments))
                return
            if not (yield from cursor.skip(_KEY)):
                break
            key = yield from cursor.until(_KEY_END)
            yield from cursor.skip_space()
            if key is None or not (yield from cursor.skip(_VALUE)):
                break
            text = yield from cursor.until(_VALUE_END)
            if text is None:
                break
            key = key.strip()
            properties = self._tools.get(name, {}).get("properties", {})
            arguments[key] = value_of(text, properties.get(key))
        cursor.reject()

    def _is_cut(self, cursor: Cursor, name: str) -> Steps[bool]:
        """Whether the next call begins where the end of one of a known tool should stand."""
        return name in self._tools and (yield from cursor.comes_next((_BEGIN,)))
