"""Finds stop strings in a text that arrives in pieces. The result does not depend on where the pieces were cut."""

from collections.abc import Sequence

from frontend.parsers.events import Content
from frontend.partial_match import partial_match_length

MAX_STOP_STRINGS = 32
MAX_STOP_STRING_CHARS = 1024


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Raises a `ValueError` with one sentence for what nothing could stop at."""
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise ValueError(f"stop must be at most {MAX_STOP_STRINGS} strings.")
    if any(not 1 <= len(stop_string) <= MAX_STOP_STRING_CHARS for stop_string in stop_strings):
        raise ValueError(f"stop must be strings of 1 to {MAX_STOP_STRING_CHARS} characters.")


class StopStrings:
    """Lets text through, except the end that may yet become a stop string.

    The stop string that is complete first wins; of two that are complete with the same character, the longer one.
    """

    def __init__(self, stop_strings: list[str], include_in_output: bool) -> None:
        self._stop_strings = stop_strings
        self._include_in_output = include_in_output
        self._held: list[Content] = []

    def feed(self, content: Content, may_stop: bool) -> tuple[list[Content], str | None]:
        """The text that is certain, and the stop string that ended it, if one did.

        With `may_stop` false a stop string that this piece completes is text like any other.
        """
        if not self._stop_strings:
            return [content], None
        held_length, pieces, buffer = 0, [content], content.text
        if self._held:
            held_length = sum([len(piece.text) for piece in self._held])
            pieces = _append(self._held, content)
            buffer = "".join([piece.text for piece in pieces])
        # Where the stop string itself is wanted nothing is held back; what is kept is only there to find it.
        given = held_length if self._include_in_output else 0
        match = self._first_match(buffer, held_length) if may_stop else None
        if match is not None:
            start, stop_string = match
            self._held = []
            end = start + len(stop_string) if self._include_in_output else start
            return _part(pieces, given, end), stop_string
        certain = len(buffer) - partial_match_length(buffer, self._stop_strings)
        released = pieces if certain == len(buffer) else _part(pieces, 0, certain)
        self._held = [] if certain == len(buffer) else _part(pieces, certain, len(buffer))
        return [content] if self._include_in_output else released, None

    def flush(self) -> list[Content]:
        """The text ended by itself: what was held is text."""
        held = [] if self._include_in_output else self._held
        self._held = []
        return held

    def _first_match(self, buffer: str, held_length: int) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop_string in self._stop_strings:
            # A match that ended in the held text was found, or passed over, before.
            start = buffer.find(stop_string, max(0, held_length - len(stop_string) + 1))
            if start >= 0:
                candidate = (start + len(stop_string), start, stop_string)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])


def _append(pieces: list[Content], last: Content) -> list[Content]:
    """One piece more, or the last one longer where they are neighbours in the output."""
    if pieces and pieces[-1].end == last.start:
        return [*pieces[:-1], Content(pieces[-1].text + last.text, pieces[-1].start)]
    return [*pieces, last]


def _part(pieces: list[Content], start: int, end: int) -> list[Content]:
    """Of the pieces what stands between two places of their joined text."""
    parts, place = [], 0
    for piece in pieces:
        part = piece.part(start - place, end - place)
        if part.text:
            parts.append(part)
        place += len(piece.text)
    return parts
