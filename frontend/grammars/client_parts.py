"""Schemas, patterns and grammars as clients write them, checked in their form."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from frontend.json_schema import check_schema

_MAX_EBNF_CHARS = 64 * 2**10
"""Of a grammar that has to be translated."""


class WrongStructure(ValueError):
    """What a client asked for cannot be had; `field` is where, from `structured_outputs` on. `code`: the error's."""

    def __init__(self, field: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def decoded(value: Any, where: str) -> Any:
    """The value that a JSON text stands for; other values are taken as they are."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WrongStructure(where, f"must be JSON: {error}.") from error


def json_schema(value: Any, where: str) -> dict[str, Any] | bool:
    """A schema, or its text, checked in its form."""
    schema = decoded(value, where)
    check_schema(schema, where)
    assert isinstance(schema, dict | bool)
    return schema


def lark_pattern(regex: str, where: str) -> str:
    """A regular expression as Lark writes it, with slashes around it."""
    if not regex:
        raise WrongStructure(where, "must not be empty.")
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(regex, 'd')}/"


class Ebnf:
    """A grammar in EBNF as llama.cpp has it. Rules that no recursion goes through are terminals."""

    def __init__(self, text: str, where: str) -> None:
        """Raises `WrongStructure`, as all of it does."""
        if len(text) > _MAX_EBNF_CHARS:
            raise WrongStructure(where, f"must have at most {_MAX_EBNF_CHARS} characters as EBNF.")
        from llguidance.gbnf_to_lark import GbnfToLarkError, GrammarParser

        self._where = where
        try:
            self._rules = GrammarParser().parse(text)
        except (GbnfToLarkError, IndexError, RecursionError) as error:
            raise WrongStructure(where, f"is not EBNF that can be translated: {error}.") from error
        if "root" not in self._rules:
            raise WrongStructure(where, "must have a rule 'root' as EBNF.")
        references = self._resolve()
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
        for number, (name, rule) in enumerate(self._rules.items()):
            rule.name = f"RULE_{number}" if name in terminals else f"rule_{number}"
        # Also where it could be a terminal: many small ones take the lexer less than a large one.
        self._rules["root"].name = "start"
        return "\n".join(f"{rule.name}: {self._text(rule.alternatives)}" for rule in self._rules.values())

    def expression(self, terminal: Callable[[str], str]) -> str:
        """A regular grammar as a terminal's expression, of another one any of what it puts together. `terminal` makes a
        terminal of an expression and answers with its name."""
        from llguidance.gbnf_to_lark import LiteralNode, RegexNode

        for name in self._terminals:
            self._rules[name].name = terminal(self._text(self._rules[name].alternatives))
        if self.is_regular:
            return str(self._rules["root"].name)
        lexemes = [str(self._rules[name].name) for name in self._terminals]
        for name in self._rules.keys() - set(self._terminals):
            lexemes += [str(node) for node in _inner(self._rules[name]) if isinstance(node, LiteralNode | RegexNode)]
        return " | ".join(sorted(set(lexemes)))

    def _text(self, node: Any) -> str:
        try:
            return str(node)
        except RecursionError as error:
            raise WrongStructure(self._where, "has too many parentheses within one another.") from error

    def _resolve(self) -> dict[str, set[str]]:
        """Ties names to their rules; those that each rule names."""
        from llguidance.gbnf_to_lark import RuleRefNode

        named: dict[str, set[str]] = {}
        for name, rule in self._rules.items():
            references = [node for node in _inner(rule) if isinstance(node, RuleRefNode)]
            for reference in references:
                if reference.name not in self._rules:
                    raise WrongStructure(self._where, f"names a rule {reference.name[:64]!r}, which there is not.")
                reference.target = self._rules[reference.name]
            named[name] = {reference.name for reference in references}
        return named


def _inner(node: Any) -> Iterator[Any]:
    """All that a rule is made of."""
    waiting = list(node.children())
    while waiting:
        one = waiting.pop()
        yield one
        waiting += one.children()


def lark_grammar(grammar: str, where: str) -> str:
    """Lark as it is, EBNF translated."""
    if "::=" in grammar:
        return Ebnf(grammar, where).lark()
    if not re.search(r"^\s*start\s*(\[[^\]]*\]\s*)?:", grammar, re.MULTILINE):
        raise WrongStructure(where, "must have a rule 'start' (Lark) or 'root ::=' (EBNF).")
    return grammar
