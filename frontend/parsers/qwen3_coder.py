"""Qwen 3 Coder: a function tag within `<tool_call>`, a parameter tag for each argument; texts stand without quotes.

Models also leave out `<tool_call>`, or its end, or write several function tags into one.
"""

from collections.abc import Sequence
from typing import Any

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, tagged_arguments
from frontend.parsers.call_json import object_of, value_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser

_BEGIN, _END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3Coder(ToolParser):
    markers = (_BEGIN, _END)
    openings = (_BEGIN,)
    other_begins = (_FUNCTION,)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        def tag(name: str) -> str:
            return builder.text(f"{_PARAMETER}{name}>\n")

        one = builder.any_of(
            [
                f"{builder.text(f'{_FUNCTION}{tool.name}>' + chr(10))} "
                + tagged_arguments(builder, tool, tag, f"\n{_PARAMETER_END}\n")
                for tool in tools
            ]
        )
        line_break = builder.text("\n")
        call = f"{line_break} {one} {builder.text(_FUNCTION_END + chr(10))} {builder.marker(_END)}"
        return f"{call} ({line_break} {builder.marker(_BEGIN)} {call})*" if many else call

    def read(self, cursor: Cursor) -> Steps[None]:
        is_within = False
        while (begin := (yield from cursor.content_until((_BEGIN, _FUNCTION)))) is not None:
            is_function = begin == _FUNCTION
            if not is_function:
                yield from cursor.skip_space()
                is_function = is_within = yield from cursor.skip(_FUNCTION)
            call = (yield from self._call(cursor)) if is_function else None
            # A function tag by itself is one of a call if it names a tool.
            if call is None or not (is_within or call[0] in self._tools):
                cursor.reject()
                is_within = False
                continue
            is_within = not (yield from cursor.skip_end((_END,)))
            cursor.call(*call)

    def _call(self, cursor: Cursor) -> Steps[tuple[str, str] | None]:
        name = yield from cursor.until(">")
        if not name or not name.strip() or "<" in name:
            return None
        name = name.strip()
        properties = self._tools.get(name, {}).get("properties", {})
        arguments: dict[str, Any] = {}
        while True:
            yield from cursor.skip_space()
            if (yield from cursor.skip(_FUNCTION_END)):
                return name, object_of(arguments)
            if not (yield from cursor.skip(_PARAMETER)):
                return None
            key = yield from cursor.until(">")
            text = yield from self._value(cursor)
            if key is None or text is None:
                return None
            arguments[key.strip()] = value_of(text, properties.get(key.strip()))

    def _value(self, cursor: Cursor) -> Steps[str | None]:
        """Up to the end tag that another tag follows: one within a text is part of the text."""
        start = cursor.position
        while (yield from cursor.until(_PARAMETER_END)) is not None:
            end = cursor.position - len(_PARAMETER_END)
            yield from cursor.skip_space()
            if (yield from cursor.comes_next((_PARAMETER, _FUNCTION_END))):
                return cursor.between(start, end).removeprefix("\n").removesuffix("\n")
        return None
