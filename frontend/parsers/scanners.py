"""Find where a bracketed value ends in a text that arrives in pieces; whether it is well formed a decoder says."""

import re
from typing import ClassVar

MAX_DEPTH = 256
CONTROL = re.compile(r"[\x00-\x1f]")
_CLOSING = {"{": "}", "[": "]", "(": ")"}


class BracketScanner:
    """Begin at the bracket that opens the value; each character is looked at once."""

    plain: ClassVar[re.Pattern[str]]
    """What may stand outside of strings beside brackets and quotes."""
    strings: ClassVar[dict[str, re.Pattern[str]]]
    """What may stand in a string, by its quote; a backslash and what follows it always may."""
    irregular: ClassVar[re.Pattern[str]]
    """What models write into strings that must not stand there as it is."""

    def __init__(self) -> None:
        self.first_irregular: int | None = None
        """Where the first of these stands."""
        self._open: list[str] = []
        self._quote = ""
        self.done = False
        self.failed = False
        """What was read cannot be the beginning of a value."""

    def scan(self, text: str, position: int) -> int:
        """Reads on from `position` to the end of the value, to what is wrong, or to the end of the text."""
        while not (self.done or self.failed):
            run = (self.strings[self._quote] if self._quote else self.plain).match(text, position)
            assert run is not None
            if self._quote and self.first_irregular is None:
                found = self.irregular.search(text, position, run.end())
                self.first_irregular = None if found is None else found.start()
            position = run.end()
            if position == len(text):
                break
            if self._quote and text[position] == "\\":
                if position + 1 == len(text):
                    break
                position += 2
                continue
            self._take(text[position])
            position += not self.failed
        return position

    def _take(self, character: str) -> None:
        """A quote or bracket, or what has no place here."""
        if self._quote:
            self.failed = character != self._quote
            self._quote = ""
        elif character in self.strings:
            self._quote = character
        elif character in _CLOSING and len(self._open) < MAX_DEPTH:
            self._open.append(_CLOSING[character])
        elif self._open and character == self._open[-1]:
            self._open.pop()
            self.done = not self._open
        else:
            self.failed = True


class JsonScanner(BracketScanner):
    plain = re.compile(r"[\s0-9A-Za-z,:+.\-]*")
    strings: ClassVar[dict[str, re.Pattern[str]]] = {'"': re.compile(r'[^"\\]*')}
    irregular = CONTROL


class PythonScanner(BracketScanner):
    plain = re.compile(r"""[^"'()\[\]{}]*""")
    strings: ClassVar[dict[str, re.Pattern[str]]] = {
        '"': re.compile(r'[^"\\]*'),
        "'": re.compile(r"[^'\\]*"),
    }
    irregular = re.compile("[\r\n]")
