"""Grammars in EBNF as llama.cpp (GBNF) and xgrammar have it, as Lark expressions.

A rule goes on to the next name with `::=` behind it, wherever lines end. Repetition, grouping and alternatives are
written alike in both languages, so a grammar is translated part by part.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from frontend.grammars.client_parts import WrongStructure

_MAX_CHARS = 64 * 2**10
_MAX_DEPTH = 100
"""Of parentheses within one another: whoever compiles them calls itself for each."""
_HEAD = r"[\w-]+[ \t]*::="
_PART = re.compile(
    rf"""(?P<space>[\s\ufeff]+|\#[^\r\n]*)|(?P<head>{_HEAD})|(?P<name>[\w-]+)|(?P<text>"(?:[^"\\]|\\.)*")"""
    r"""|(?P<chars>\[(?:[^\]\\]|\\.)*\])|(?P<times>[*+?]|\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\})|(?P<mark>[()|.])""",
    re.DOTALL,
)
_IS_EBNF = re.compile(rf"^\s*{_HEAD}", re.MULTILINE)
_CHAR = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0"} | {
    char: char for char in "\"'\\[]()-/^$.|*+?{}"
}
_ANY = r"/(.|\n)/"
_NAME = "\0"
"""Before the name of a rule among the parts of an expression."""


def is_ebnf(grammar: str) -> bool:
    return _IS_EBNF.search(grammar) is not None


@dataclass(slots=True)
class _Rule:
    parts: list[str] = field(default_factory=list)
    """Of its expression."""
    lexemes: list[str] = field(default_factory=list)
    """Texts and classes of characters among them."""

    @property
    def names(self) -> set[str]:
        return {part[1:] for part in self.parts if part[0] == _NAME}

    def expression(self, names: dict[str, str]) -> str:
        """`names`: what rules are called."""
        written = ""
        for part in self.parts:
            written += part if part[0] in "*+?{" else f" {names[part[1:]] if part[0] == _NAME else part}"
        return written.lstrip()


class Ebnf:
    """One grammar. Rules that no recursion goes through are terminals."""

    def __init__(self, text: str, where: str) -> None:
        """Raises `WrongStructure`."""
        if len(text) > _MAX_CHARS:
            raise WrongStructure(where, f"must have at most {_MAX_CHARS} characters as EBNF.")
        self._rules = _Reader(text, where).rules()
        if "root" not in self._rules:
            raise WrongStructure(where, "must have a rule 'root' as EBNF.")
        references = {name: rule.names for name, rule in self._rules.items()}
        for named in references.values():
            for name in named - self._rules.keys():
                raise WrongStructure(where, f"names a rule {name[:64]!r}, which there is not.")
        order = TopologicalSorter(references)
        # With a cycle, those rules are still there to be had that do not lead into it.
        with suppress(CycleError):
            order.prepare()
        self._terminals = list[str]()
        while ready := order.get_ready():
            self._terminals += ready
            order.done(*ready)

    @property
    def is_regular(self) -> bool:
        """Whether the whole grammar is a terminal."""
        return "root" in self._terminals

    def lark(self) -> str:
        """As a Lark grammar of its own."""
        terminals = set(self._terminals)
        names = {
            name: f"RULE_{number}" if name in terminals else f"rule_{number}" for number, name in enumerate(self._rules)
        }
        # Also where it could be a terminal: many small ones take the lexer less than a large one.
        names["root"] = "start"
        return "\n".join(f"{names[name]}: {rule.expression(names)}" for name, rule in self._rules.items())

    def expression(self, terminal: Callable[[str], str]) -> str:
        """A regular grammar as a terminal's expression, of another one any of what it puts together. `terminal` makes a
        terminal of an expression and answers with its name."""
        names: dict[str, str] = {}
        for name in self._terminals:
            names[name] = terminal(self._rules[name].expression(names))
        if self.is_regular:
            return names["root"]
        lexemes = set(names.values())
        for name in self._rules.keys() - names.keys():
            lexemes.update(self._rules[name].lexemes)
        return " | ".join(sorted(lexemes))


class _Reader:
    """Reads one text once."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._position = 0
        self._rules: dict[str, _Rule] = {}
        self._rule = _Rule()
        self._depth = 0
        self._after = "mark"
        """The kind of the part before: `item`, `times`, or `mark`, behind which nothing has been said."""

    def rules(self) -> dict[str, _Rule]:
        while self._position < len(self._text):
            found = _PART.match(self._text, self._position)
            if found is None:
                raise self._wrong("there is something that is neither a rule's name, a text, [...] nor an operator")
            self._take(found.lastgroup or "", found.group())
            self._position = found.end()
        self._end_rule()
        return self._rules

    def _take(self, kind: str, part: str) -> None:
        if kind == "space":
            return
        if kind == "head":
            self._begin_rule(part.removesuffix("::=").rstrip())
        elif not self._rules:
            raise self._wrong("there is no rule yet")
        elif kind == "times":
            self._repeat(part)
        elif kind == "mark" and part != ".":
            self._mark(part)
        else:
            self._rule.parts.append(self._item(kind, part))
            self._after = "item"

    def _begin_rule(self, name: str) -> None:
        if self._rules:
            self._end_rule()
        if name in self._rules:
            raise self._wrong(f"the rule {name[:64]!r} is there a second time")
        self._rule = self._rules[name] = _Rule()

    def _end_rule(self) -> None:
        if self._depth:
            raise self._wrong("a parenthesis is not closed")
        self._close_sequence()

    def _close_sequence(self) -> None:
        """One without parts is the empty text."""
        if self._after == "mark":
            self._rule.parts.append('""')
        self._after = "mark"

    def _mark(self, mark: str) -> None:
        if mark == "(":
            self._depth += 1
            self._after = "mark"
        else:
            self._close_sequence()
        if mark == ")":
            self._depth -= 1
            self._after = "item"
        if not 0 <= self._depth <= _MAX_DEPTH:
            raise self._wrong(f"parentheses do not match, or are more than {_MAX_DEPTH} within one another")
        self._rule.parts.append(mark)

    def _repeat(self, times: str) -> None:
        if self._after != "item":
            raise self._wrong(f"nothing stands before {times[:20]!r} that can be repeated")
        if times[0] == "{":
            least, comma, most = "".join(times[1:-1].split()).partition(",")
            times = f"{{{least},{most if comma else least}}}"
        self._rule.parts.append(times)
        self._after = "times"

    def _item(self, kind: str, part: str) -> str:
        if kind == "name":
            return f"{_NAME}{part}"
        if kind == "text":
            item = json.dumps("".join(map(chr, self._chars(part[1:-1]))), ensure_ascii=False)
        else:
            item = self._class(part[1:-1]) if kind == "chars" else _ANY
        self._rule.lexemes.append(item)
        return item

    def _class(self, inner: str) -> str:
        is_negated = inner.startswith("^")
        found = list(_CHAR.finditer(inner, int(is_negated)))
        chars = self._chars(inner[int(is_negated) :])
        ranges = []
        index = 0
        while index < len(chars):
            first = last = chars[index]
            if index + 2 < len(chars) and found[index + 1].group() == "-":
                index += 2
                last = chars[index]
            if last < first:
                raise self._wrong(f"the range {chr(first)}-{chr(last)} ends before it begins")
            ranges.append(f"\\x{{{first:X}}}-\\x{{{last:X}}}")
            index += 1
        if not ranges:
            if is_negated:
                return _ANY
            raise self._wrong("[] allows no character")
        return f"/[{'^' if is_negated else ''}{''.join(ranges)}]/"

    def _chars(self, text: str) -> list[int]:
        """Code points."""
        chars = []
        for found in _CHAR.finditer(text):
            *codes, escaped, plain = found.groups()
            code = next((code for code in codes if code), None)
            if escaped is not None and escaped not in _ESCAPES:
                raise self._wrong(f"there is no escape {found.group()[:10]!r}")
            char = int(code, 16) if code is not None else ord(plain if escaped is None else _ESCAPES[escaped])
            if char > 0x10FFFF or 0xD800 <= char < 0xE000:
                raise self._wrong(f"{found.group()} is no character")
            chars.append(char)
        return chars

    def _wrong(self, why: str) -> WrongStructure:
        line = self._text.count("\n", 0, self._position) + 1
        return WrongStructure(self._where, f"is not EBNF that can be translated: in line {line}, {why}.")
