"""Reads a model's text while it arrives. Formats are written as if the whole text were there.

What a format reads is held until it says what it was: a call, markup, or, when it turns out to be malformed, content
like any other. Every method that has to wait yields; its result depends on the text alone, never on how it was cut.
"""

import string
import uuid
from collections.abc import Callable, Collection, Generator, Sequence
from typing import TypeVar

from frontend.parsers.events import Content, Event, Reasoning, ToolCall
from frontend.parsers.scanners import BracketScanner, JsonScanner
from frontend.partial_match import partial_match_length

T = TypeVar("T")
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_.-")
Steps = Generator[None, None, T]
"""Something that reads; it yields when it needs more text."""


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class Cursor:
    """The text that is not decided yet, how far it was read, and the events found so far."""

    def __init__(self, callable_names: Collection[str] | None = None, markers: Sequence[str] = ()) -> None:
        """`callable_names`: a call of any other function is content; None: all calls are calls. `markers`: none of them
        stands in a string that is not as it should be."""
        self._callable_names = callable_names
        self._markers = markers
        self._text = ""
        self._position = 0
        self._num_decided = 0
        self._ended = False
        self._events: list[Event] = []
        self._num_calls = 0
        self._has_content = False
        self._space: list[Content] = []
        """White space at the end of the content so far: between content and a call it is nobody's."""
        self._line_breaks = ""
        """Those at the end of the reasoning so far, which set it off from its end marker."""

    def feed(self, text: str, start: int | None = None) -> None:
        """`start`: where the text stands in the output, unless it is behind the text before it."""
        if start is not None and not self._text:
            self._num_decided = start
        self._text += text

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def flush(self) -> None:
        """At the end: white space is content where there was nothing else."""
        if not self._num_calls:
            self._events += self._space
        self._space = []

    # Reading

    def at_end(self) -> Steps[bool]:
        """Whether nothing is left; waits for at least one character."""
        while self._position == len(self._text):
            if self._ended:
                return True
            yield
        return False

    def skip_space(self) -> Steps[None]:
        while not (yield from self.at_end()) and self._text[self._position].isspace():
            self._position += 1

    def skip(self, literal: str) -> Steps[bool]:
        """Reads over the literal if it comes next."""
        while not self._text.startswith(literal, self._position):
            if self._ended or not literal.startswith(self._text[self._position :]):
                return False
            yield
        self._position += len(literal)
        return True

    def skip_any(self, literals: Sequence[str]) -> Steps[str | None]:
        for literal in literals:
            if (yield from self.skip(literal)):
                return literal
        return None

    def until(self, literal: str) -> Steps[str | None]:
        """The text before the literal, both read; None, and all read, when it never comes."""
        start = searched = self._position
        while (found := self._text.find(literal, searched)) < 0:
            self._position = len(self._text)
            if self._ended:
                return None
            searched = max(start, len(self._text) - len(literal) + 1)
            yield
        self._position = found + len(literal)
        return self._text[start:found]

    def name(self) -> Steps[str]:
        """A function's name or an id; empty when something else comes next."""
        start = self._position
        while not (yield from self.at_end()) and self._text[self._position] in _NAME_CHARACTERS:
            self._position += 1
        return self._text[start : self._position]

    def json_value(self) -> Steps[str | None]:
        """The object or array that comes next, as `bracketed` finds it."""
        if (yield from self.at_end()) or self._text[self._position] not in "{[":
            return None
        return (yield from self.bracketed(JsonScanner()))

    def bracketed(self, scanner: BracketScanner) -> Steps[str | None]:
        """The value that comes next. None, and read as far as it is certain, when there is none."""
        start = searched = self._position
        while True:
            self._position = scanner.scan(self._text, self._position)
            irregular = scanner.first_irregular
            # A string that was never closed would otherwise go on into the next call.
            if irregular is not None and any(
                self._text.find(marker, searched, self._position) >= 0 for marker in self._markers
            ):
                self._position = irregular
                return None
            if scanner.done:
                return self._text[start : self._position]
            if scanner.failed or self._ended:
                if irregular is not None:
                    self._position = irregular
                elif not scanner.failed:
                    self._position = len(self._text)
                return None
            searched = max(start, self._position - max(map(len, self._markers), default=0))
            yield

    def skip_end(self, literals: Sequence[str]) -> Steps[bool]:
        """Reads over one of them and the white space before it, or over nothing."""
        start = self._position
        yield from self.skip_space()
        found = yield from self.skip_any(literals)
        if found is None:
            self.go_back(start)
        return found is not None

    def go_back(self, position: int) -> None:
        """What was read from there on is read once more."""
        self._position = position

    def comes_next(self, literals: Sequence[str]) -> Steps[bool]:
        """Whether one of them does; reads nothing."""
        start = self._position
        found = yield from self.skip_any(literals)
        self.go_back(start)
        return found is not None

    @property
    def position(self) -> int:
        """Where reading has come to, until something is decided."""
        return self._position

    @property
    def num_decided(self) -> int:
        """Characters of the output of which it is known what they are."""
        return self._num_decided

    def between(self, start: int, end: int) -> str:
        """Of what was read the text from one position to another."""
        return self._text[start:end]

    # Deciding

    def drop(self) -> None:
        """What was read is markup."""
        self._decide(self._position)

    def reject(self) -> None:
        """What was read is content after all."""
        self._add_content(self._text[: self._position])
        self.drop()

    def call(self, name: str, arguments: str, call_id: str | None = None) -> bool:
        """What was read is a call. Whether it may be one."""
        return self.calls([(name, arguments)], call_id)

    def calls(
        self, calls: Sequence[tuple[str, str]], call_id: str | None = None, new_id: Callable[[], str] = _new_id
    ) -> bool:
        """What was read is calls, names and arguments; all of it is content, and false, if one must not be made.
        `call_id`: of the only one, if the model gave it one."""
        if self._callable_names is not None and any(name not in self._callable_names for name, _ in calls):
            self.reject()
            return False
        self.drop()
        for name, arguments in calls:
            self._events.append(ToolCall(self._num_calls, call_id or new_id(), name, arguments))
            self._num_calls += 1
        return True

    def content_until(self, markers: Sequence[str]) -> Steps[str | None]:
        """All up to the first of the markers is content. Reads the marker; None: the text ended."""
        found = yield from self._seek(markers, self._add_content)
        return found

    def reasoning_until(self, markers: Sequence[str]) -> Steps[str | None]:
        found = yield from self._seek(markers, self._add_reasoning)
        self._line_breaks = ""
        return found

    def rest_is_content(self) -> Steps[None]:
        """All that is not decided yet and all that comes, untouched."""
        while True:
            if self._text:
                self._events.append(Content(self._text, self._num_decided))
            self._decide(len(self._text))
            if self._ended:
                return
            yield

    def _decide(self, length: int) -> None:
        self._num_decided += length
        self._text = self._text[length:]
        self._position = 0

    def _seek(self, markers: Sequence[str], add: Callable[[str], None]) -> Steps[str | None]:
        while True:
            text = self._text
            places = [(place, marker) for marker in markers if (place := text.find(marker)) >= 0]
            if places:
                place, marker = min(places)
                add(text[:place])
                self._decide(place)
                self._position = len(marker)
                return marker
            certain = len(text) if self._ended else len(text) - partial_match_length(text, markers)
            add(text[:certain])
            self._decide(certain)
            if self._ended:
                return None
            yield

    def _add_content(self, text: str) -> None:
        """`text` is the first that is not decided."""
        kept = text.rstrip()
        end = self._num_decided + len(kept)
        if kept:
            if self._num_calls and not self._has_content:
                kept = kept.lstrip()
            else:
                self._events += self._space
            self._has_content = True
            self._events.append(Content(kept, end - len(kept)))
            self._space = []
        space = text[end - self._num_decided :]
        if space:
            self._space.append(Content(space, end))

    def _add_reasoning(self, text: str) -> None:
        text = self._line_breaks + text
        kept = text.rstrip("\n")
        self._line_breaks = text[len(kept) :]
        if kept:
            self._events.append(Reasoning(kept))
