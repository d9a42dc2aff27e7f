"""What a parser finds in a model's text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


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
