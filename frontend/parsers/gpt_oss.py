"""gpt-oss (harmony): messages in channels. `analysis` is reasoning, `final` content, `commentary` to a function a call.

A message is a header, `<|message|>` and a text up to the token that ends it; the prompt ends within a first header.
"""

import re
from collections.abc import Collection, Sequence

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.tool_calls import BoundTool
from frontend.parsers.call_json import arguments_of
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import Parser

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADERS = (_START, _CHANNEL, _MESSAGE, " to=functions.")
_RECIPIENT = re.compile(r"\bto=functions\.([A-Za-z0-9_.-]+)")
_ANALYSIS = re.compile(r"<\|channel\|>analysis\b")


class Harmony(Parser):
    """Both the tool and the reasoning parser."""

    markers = (_START, _CHANNEL, _MESSAGE, "<|constrain|>", *_ENDS)

    @classmethod
    def answer(cls, builder: GrammarBuilder, answer: str) -> str:
        """A message of the final channel, after an analysis or not."""
        return f"{_header(builder, 'final')} {answer}"

    @classmethod
    def text(cls, builder: GrammarBuilder) -> str:
        """An answer that may be anything but another message."""
        return cls.answer(builder, builder.anything_without(_ENDS))

    @classmethod
    def calls(cls, builder: GrammarBuilder, tools: Sequence[BoundTool]) -> str:
        """One call: the token after it ends the output."""
        return builder.any_of(
            [
                f"{builder.marker(_CHANNEL)} {builder.text(f'commentary to=functions.{tool.name} ')} "
                f"{builder.marker('<|constrain|>')} {builder.text('json')} {builder.marker(_MESSAGE)} "
                + tool.arguments(builder)
                for tool in tools
            ]
        )

    @classmethod
    def reasoning(cls, builder: GrammarBuilder) -> str:
        """An analysis and the header of what follows it, or nothing."""
        analysis = f"{_header(builder, 'analysis')} {builder.anything_until(_ENDS[0], without=_ENDS[1:])}"
        return f"({analysis} {builder.marker(_START)} {builder.text('assistant')})?"

    def __init__(self, wants_calls: bool, callable_names: Collection[str] | None = None) -> None:
        self._wants_calls = wants_calls
        super().__init__(callable_names)

    @classmethod
    def thinking_markers(cls, prompt: str) -> tuple[str, str] | None:
        """As `ReasoningParser` has it. The model begins a message in another channel once this one has ended."""
        return f"{_CHANNEL}analysis{_MESSAGE}", _ENDS[0]

    def read(self, cursor: Cursor) -> Steps[None]:
        while True:
            begins = yield from cursor.skip_any(_HEADERS)
            if begins is None:
                # No message: what a model without its format writes is content.
                begins = yield from cursor.content_until((_START, _CHANNEL))
            if begins is None:
                return
            yield from self._read_message(cursor)

    def _read_message(self, cursor: Cursor) -> Steps[None]:
        """What was read is the beginning of its header."""
        start, header = cursor.num_decided, cursor.between(0, cursor.position)
        if header != _MESSAGE:
            rest = yield from cursor.until(_MESSAGE)
            if rest is None:
                cursor.reject()
                return
            header += rest
        recipient = _RECIPIENT.search(header)
        if recipient and self._wants_calls:
            if (yield from self._read_call(cursor, recipient.group(1))):
                return
            cursor.reject()
        cursor.drop()
        if _ANALYSIS.search(header):
            self._begin_reasoning(start)
            yield from cursor.reasoning_until(_ENDS)
        else:
            yield from cursor.content_until(_ENDS)
        cursor.drop()
        self._end_reasoning()

    def _read_call(self, cursor: Cursor, name: str) -> Steps[bool]:
        """Whether it was one."""
        yield from cursor.skip_space()
        body = yield from cursor.json_value()
        arguments = None if body is None else arguments_of(body)
        yield from cursor.skip_space()
        is_over = (yield from cursor.skip_any(_ENDS)) is not None or (yield from cursor.at_end())
        if not is_over and not (yield from cursor.comes_next((_START, _CHANNEL))):
            return False
        if arguments is None:
            return False
        return cursor.call(name, arguments)


def _header(builder: GrammarBuilder, channel: str) -> str:
    return f"{builder.marker(_CHANNEL)} {builder.text(channel)} {builder.marker(_MESSAGE)}"
