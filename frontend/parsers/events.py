"""What a parser finds in a model's text."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str
    start: int = field(default=0, compare=False)
    """How many characters of the output stand before it, markup included."""

    @property
    def end(self) -> int:
        """How many stand before what follows it."""
        return self.start + len(self.text)

    def part(self, start: int, end: int) -> "Content":
        """What stands between two places of its text, which may lie outside of it."""
        start, end = max(start, 0), max(end, 0)
        return Content(self.text[start:end], self.start + start)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call; the calls of an answer are counted from 0."""

    index: int
    id: str
    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


Event = Content | Reasoning | ToolCall
