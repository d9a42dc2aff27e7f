"""Mistral: `[TOOL_CALLS]` before a JSON array of calls, or, since 2025, before each name, with `[ARGS]` after it.

`[THINK]` and `[/THINK]` are around the reasoning.
"""

import secrets
import string
from collections.abc import Sequence

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool, json_calls, repeated
from frontend.parsers.call_json import Calls, arguments_of, calls_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ToolParser
from frontend.parsers.think import ThinkParser

_CALLS, _ARGS = "[TOOL_CALLS]", "[ARGS]"
_ID_CHARACTERS = string.ascii_letters + string.digits


class Mistral(ToolParser):
    markers = (_CALLS, _ARGS, "[CALL_ID]")
    openings = (_CALLS,)

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool], many: bool) -> str:
        """In the newer form where the tokenizer has it."""
        if not builder.has_token(_ARGS):
            calls = repeated(json_calls(builder, tools, "arguments"), builder.text(", "), many)
            return f"{builder.text('[')} {calls} {builder.text(']')}"
        call = builder.any_of(
            [f"{builder.text(tool.name)} {builder.marker(_ARGS)} " + tool.arguments(builder) for tool in tools]
        )
        return repeated(call, builder.marker(_CALLS), many)

    def read(self, cursor: Cursor) -> Steps[None]:
        while (yield from cursor.content_until((_CALLS,))) is not None:
            yield from cursor.skip_space()
            if (yield from cursor.comes_next(("[", "{"))):
                body = yield from cursor.json_value()
                calls, call_id = (None if body is None else calls_of(body)), None
            else:
                calls, call_id = yield from self._named_call(cursor)
            if calls is None:
                cursor.reject()
                continue
            cursor.calls(calls, call_id, _new_id)

    def _named_call(self, cursor: Cursor) -> Steps[tuple[Calls | None, str | None]]:
        name = yield from cursor.name()
        call_id = None
        if (yield from cursor.skip("[CALL_ID]")):
            call_id = yield from cursor.name()
        yield from cursor.skip(_ARGS)
        yield from cursor.skip_space()
        body = yield from cursor.json_value()
        arguments = None if body is None else arguments_of(body)
        return None if arguments is None or not name else [(name, arguments)], call_id


class MistralReasoning(ThinkParser):
    start = "[THINK]"
    end = "[/THINK]"
    markers = (start, end)


def _new_id() -> str:
    """Mistral's templates refuse ids of any other form."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
