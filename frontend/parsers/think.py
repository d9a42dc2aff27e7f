"""Reasoning between two markers, before the content. Most families write it so and differ in little."""

from typing import ClassVar

from frontend.grammars.builder import GrammarBuilder
from frontend.parsers.cursor import Cursor, Steps
from frontend.parsers.parser import ReasoningParser


class ThinkParser(ReasoningParser):
    """An output begins with the start marker, or continues a prompt that ends with it, or has no reasoning."""

    start: ClassVar[str] = "<think>"
    end: ClassVar[str] = "</think>"
    always_reasons: ClassVar[bool] = False
    """Whether an output is reasoning also without a start marker, unless the prompt has closed it."""
    markers = (start, end)

    @classmethod
    def thinking_markers(cls, prompt: str) -> tuple[str, str] | None:
        prompt = prompt.rstrip()
        if prompt.endswith(cls.end):
            return None
        return ("" if cls.always_reasons or prompt.endswith(cls.start) else cls.start), cls.end

    def read(self, cursor: Cursor) -> Steps[None]:
        may_begin = not (self._is_thinking_off or self._prompt.endswith(self.end))
        if self._prompt.endswith(self.start) or (self.always_reasons and may_begin):
            self._begin_reasoning(0)
        yield from cursor.skip_space()
        if may_begin and (yield from cursor.skip(self.start)):
            self._begin_reasoning(0)
        if self.in_reasoning:
            cursor.drop()
            yield from cursor.skip_space()
            cursor.drop()
            yield from cursor.reasoning_until((self.end,))
            cursor.drop()
            self._end_reasoning()
            yield from cursor.skip_space()
            cursor.drop()
        yield from cursor.rest_is_content()

    @classmethod
    def reasoning(cls, builder: GrammarBuilder, prompt: str, *, is_thinking_off: bool = False) -> str:
        prompt = prompt.rstrip()
        if is_thinking_off and prompt.endswith(cls.start):
            return f"{builder.white_space()} {builder.marker(cls.end)} {builder.white_space()}"
        if is_thinking_off or prompt.endswith(cls.end):
            return ""
        start = f"{builder.white_space()} {builder.marker(cls.start)}"
        rest = f"{builder.anything_until(cls.end)} {builder.white_space()}"
        if prompt.endswith(cls.start):
            return rest
        return f"({start})? {rest}" if cls.always_reasons else f"({start} {rest})?"


class Qwen3(ThinkParser):
    """Qwen 3 and whoever writes `<think>` as it does."""


class DeepSeekR1(ThinkParser):
    """Some of its templates begin the reasoning, and some models leave out what begins it."""

    always_reasons = True


class Glm(ThinkParser):
    """GLM 4.5 and later."""
