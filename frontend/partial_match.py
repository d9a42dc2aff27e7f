"""Whether a text that may go on ends within one of some strings."""

from collections.abc import Sequence


def partial_match_length(text: str, strings: Sequence[str]) -> int:
    """The length of the longest end of `text` that begins one of the strings without being all of it."""
    longest = 0
    for string in strings:
        position = max(0, len(text) - len(string) + 1)
        while (position := text.find(string[0], position)) >= 0:
            if string.startswith(text[position:]):
                longest = max(longest, len(text) - position)
                break
            position += 1
    return longest
