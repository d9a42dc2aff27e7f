"""What formats of structural tags mean, tried out at every position of a text, without any lexer."""

import re
from collections.abc import Callable, Iterable
from typing import Any

VALUES = {
    "boolean": ("true", "false"),
    "integer": tuple(str(number) for number in range(100)),
    "string": ('"a"', '"b"'),
}
SCHEMAS: dict[str, Any] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": 0, "maximum": 99},
    "string": {"type": "string", "enum": ["a", "b"]},
}

Ends = set[int]


def is_in(form: Any, text: str) -> bool:
    return len(text) in _Reading(text).ends(form, 0, (), "")


class _Reading:
    def __init__(self, text: str) -> None:
        self._text = text

    def ends(self, form: Any, start: int, tag_ends: tuple[str, ...], next_end: str) -> Ends:
        """Where the format may end that begins at `start`. `tag_ends`: of the innermost tag; `next_end`: comes next."""
        text = self._text
        match form["type"]:
            case "const_string":
                return self._word(form["value"], start)
            case "regex":
                return {end for end in self._after(start) if re.fullmatch(form["pattern"], text[start:end])}
            case "json_schema":
                values = next(VALUES[name] for name, schema in SCHEMAS.items() if schema == form["json_schema"])
                return {end for value in values for end in self._word(value, start)}
            case "any_text":
                return self._free(start, (*form.get("excludes", ()), *tag_ends), tag_ends, next_end)
            case "sequence":
                *before, last = form["elements"]
                found = {start}
                for element in before:
                    found = self._each(found, lambda at, one=element: self.ends(one, at, tag_ends, ""))
                return self._each(found, lambda at: self.ends(last, at, tag_ends, next_end))
            case "or":
                return {end for one in form["elements"] for end in self.ends(one, start, tag_ends, next_end)}
            case "optional":
                return {start} | self.ends(form["content"], start, tag_ends, next_end)
            case "repeat":
                return self._repeated(form, start, tag_ends)
            case "tag":
                return self._each(self._word(form["begin"], start), lambda at: self._tag_rest(form, at))
            case "triggered_tags":
                return self._triggered(form, start, tag_ends, next_end)
            case "tags_with_separator":
                return self._separated(form, start)
        raise AssertionError(form)

    def _after(self, start: int) -> range:
        return range(start, len(self._text) + 1)

    def _word(self, word: str, start: int) -> Ends:
        return {start + len(word)} if self._text.startswith(word, start) else set()

    def _each(self, starts: Iterable[int], step: Callable[[int], Ends]) -> Ends:
        return {end for start in starts for end in step(start)}

    def _free(self, start: int, without: Iterable[str], tag_ends: tuple[str, ...], next_end: str) -> Ends:
        found = set()
        for end in self._after(start):
            piece = self._text[start:end]
            if any(word in piece for word in without):
                break
            both = piece + next_end
            early = (
                both.startswith(word, at)
                for word in tag_ends
                for at in range(len(piece))
                if next_end and at + len(word) < len(both)
            )
            if not any(early):
                found.add(end)
        return found

    def _tag_rest(self, form: Any, start: int) -> Ends:
        ends = (form["end"],) if isinstance(form["end"], str) else tuple(form["end"])
        found = set()
        for end in ends:
            for at in self.ends(form["content"], start, ends, end):
                found |= self._word(end, at)
        return found

    def _repeated(self, form: Any, start: int, tag_ends: tuple[str, ...]) -> Ends:
        current, found = {start}, {start} if form["min"] == 0 else set[int]()
        for number in range(1, (form["max"] if form["max"] >= 0 else form["min"] + len(self._text)) + 1):
            current = self._each(current, lambda at: self.ends(form["content"], at, tag_ends, ""))
            found |= current if number >= form["min"] else set()
        return found

    def _triggered(self, form: Any, start: int, tag_ends: tuple[str, ...], next_end: str) -> Ends:
        triggers = tuple(form["triggers"])
        without = (*form.get("excludes", ()), *tag_ends)
        first = self._each([start], lambda at: {end for one in form["tags"] for end in self.ends(one, at, (), "")})

        def one_more(at: int) -> Ends:
            found = set[int]()
            for here in self._after(at):
                piece = self._text[at:here]
                if any(word in piece for word in without) or any(trigger in piece[:-1] for trigger in triggers):
                    break
                for one in form["tags"]:
                    trigger = next(trigger for trigger in triggers if one["begin"].startswith(trigger))
                    if piece.endswith(trigger):
                        rest = self._word(one["begin"][len(trigger) :], here)
                        found |= self._each(rest, lambda there, one=one: self._tag_rest(one, there))
            return found

        def free(at: int) -> Ends:
            return self._free(at, (*without, *triggers), tag_ends, next_end)

        if form.get("stop_after_first"):
            return first if form.get("at_least_one") else free(start) | one_more(start)
        found = self._closure(first if form.get("at_least_one") else {start}, one_more)
        return self._each(found, free)

    def _separated(self, form: Any, start: int) -> Ends:
        def one(at: int) -> Ends:
            return {end for each in form["tags"] for end in self.ends(each, at, (), "")}

        def one_more(at: int) -> Ends:
            return self._each(self._word(form["separator"], at), one)

        found = one(start)
        found = found if form.get("stop_after_first") else self._closure(found, one_more)
        return found if form.get("at_least_one") else found | {start}

    def _closure(self, starts: Ends, step: Callable[[int], Ends]) -> Ends:
        found, waiting = set(starts), list(starts)
        while waiting:
            new = step(waiting.pop()) - found
            found |= new
            waiting += new
        return found
