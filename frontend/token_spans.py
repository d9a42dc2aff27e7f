"""Which tokens of an output its reasoning and its content consist of.

A position is a number of characters of the output's text, markup included. A parser decides later than the tokens
arrive what a text is, so tokens wait here until then.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Token(Generic[Item]):
    item: Item
    start: int
    end: int
    """Where its text ends. A token without text ends where it starts."""
    is_reasoning: bool = False


class TokenSpans(Generic[Item]):
    """One output's tokens in their order, each with an item that the caller wants back."""

    def __init__(self) -> None:
        self.num_reasoning = 0
        """Tokens of which the reasoning has a part."""
        self._num_chars = 0
        self._undecided: deque[_Token[Item]] = deque()
        self._without_text: list[_Token[Item]] = []
        """Pieces of a character that is not complete."""

    def push(self, item: Item, num_chars: int, *, is_left_out: bool = False) -> None:
        """The next token, which completes `num_chars` characters. `is_left_out`: it never has a text."""
        token = _Token(item, self._num_chars, self._num_chars)
        self._undecided.append(token)
        if not is_left_out:
            self._without_text.append(token)
            self.grow(num_chars)

    def grow(self, num_chars: int) -> None:
        """The text goes on, and the tokens that waited for theirs have a share in it."""
        if num_chars:
            self._num_chars += num_chars
            for token in self._without_text:
                token.end = self._num_chars
            self._without_text.clear()

    def reasoning(self, start: int, end: int | None) -> None:
        """The text between two positions is reasoning, its markers included; None: all that is left. A run that grows
        may be given again and again."""
        undecided = self._undecided
        for token in undecided:
            if end is not None and token.start >= end:
                break
            if not token.is_reasoning and (token.end > start or token.start == token.end == start):
                token.is_reasoning = True
                self.num_reasoning += 1
        # A token that goes beyond the end may have a part of the content.
        while undecided and undecided[0].is_reasoning and (end is None or undecided[0].end <= end):
            undecided.popleft()

    def content(self, start: int, end: int) -> list[Item]:
        """The text between two positions is content: the items of its tokens. One that was given before is not given
        again; what comes before `start` and was not given is neither content nor reasoning."""
        found = []
        while self._undecided and self._undecided[0].start < end:
            token = self._undecided.popleft()
            if token.end > max(start, token.start):
                found.append(token.item)
        return found
