"""Finds stop strings in a text that arrives in pieces. The result does not depend on where the pieces were cut."""

from collections.abc import Sequence

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
        self._held = ""

    def feed(self, text: str, may_stop: bool) -> tuple[str, str | None]:
        """The text that is certain, and the stop string that ended it, if one did.

        With `may_stop` false a stop string that this piece completes is text like any other.
        """
        if not self._stop_strings:
            return text, None
        held_length = len(self._held)
        buffer = self._held + text
        # Where the stop string itself is wanted nothing is held back; what is kept is only there to find it.
        given = held_length if self._include_in_output else 0
        match = self._first_match(buffer, held_length) if may_stop else None
        if match is not None:
            start, stop_string = match
            self._held = ""
            return buffer[given : start + len(stop_string) if self._include_in_output else start], stop_string
        certain = len(buffer) - partial_match_length(buffer, self._stop_strings)
        self._held = buffer[certain:]
        return text if self._include_in_output else buffer[:certain], None

    def flush(self) -> str:
        """The text ended by itself: what was held is text."""
        text = "" if self._include_in_output else self._held
        self._held = ""
        return text

    def _first_match(self, buffer: str, held_length: int) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop_string in self._stop_strings:
            # A match that ended in the held text was found, or passed over, before.
            start = buffer.find(stop_string, max(0, held_length - len(stop_string) + 1))
            if start >= 0:
                candidate = (start + len(stop_string), start, stop_string)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])
