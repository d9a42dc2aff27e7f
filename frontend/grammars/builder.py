"""Writes one grammar in llguidance's form: a Lark grammar whose rules may stand for JSON schemas and other grammars.

What the methods return are Lark expressions, to be put together with `|`, `?` and parentheses.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine_core.ipc.sampling_params import MAX_GRAMMAR_CHARS
from frontend.grammars.engine_schema import EngineSchema, Schema

_WHITE_SPACE = r"\x20|\x0D?\x0A[\x20\x09]{0,32}"
"""Between JSON's tokens: a space, or a line break with what indents the next line. That is any usual layout and nothing
that a model could wander off into."""
_OPTIONS = "x-guidance"
"""A keyword by which llguidance takes options."""
PLAIN_ESCAPES = '"\\bfnrt'
"""What may follow a backslash in a text where the same text must not be written in two ways."""
_IN_BRACKETS = re.compile(r"(<[^<>]*>|\[[^\[\]]*\])")


class GrammarTooLong(ValueError):
    """The text would be longer than the engine takes."""


class GrammarBuilder:
    def __init__(self, token_id_of: Callable[[str], int | None]) -> None:
        """`token_id_of`: of a token by its text that is no text for a grammar; other texts have none."""
        self._token_id_of = token_id_of
        self._rules: list[str] = []
        self._terminals: dict[str, str] = {}
        self._named: list[dict[str, Any]] = []

    @staticmethod
    def text(literal: str) -> str:
        """Exactly this text."""
        return json.dumps(literal, ensure_ascii=False)

    def marker(self, literal: str) -> str:
        """Exactly this text, as the special token that it is if it is one."""
        token_id = self._token_id_of(literal)
        return self.text(literal) if token_id is None else self.token(token_id)

    @staticmethod
    def token(token_id: int) -> str:
        """Exactly this token."""
        return f"<[{token_id}]>"

    def split_at_tokens(self, literal: str) -> list[str | int]:
        """A text's parts that are not empty: its special tokens' ids, and what stands between them. Within a longer
        text tokens in angle or square brackets are found."""
        whole = self._token_id_of(literal)
        if whole is not None:
            return [whole]
        parts = ((part, self._token_id_of(part)) for part in _IN_BRACKETS.split(literal) if part)
        joined: list[str | int] = []
        for part, token_id in parts:
            if token_id is None and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part if token_id is None else token_id)
        return joined

    def has_token(self, literal: str) -> bool:
        """Whether there is a special token of this text."""
        return self._token_id_of(literal) is not None

    def anything(self) -> str:
        """Any text, also none, without special tokens."""
        return self.terminal(r"/(.|\n)*/")

    def white_space(self) -> str:
        """Some or none."""
        return self.terminal(r"/[ \n\r\t]{0,40}/")

    def anything_without(self, literals: Sequence[str]) -> str:
        """Any text without special tokens in which none of these stands, however it is cut into tokens: what reads a
        text does not tell a special token from others that spell the same."""
        if not literals:
            return self.anything()
        some = self.any_of([self.text(literal) for literal in literals])
        return self.terminal(f"{self.anything()} & ~({self.anything()} {some} {self.anything()})")

    def anything_until(self, literal: str, *, without: Sequence[str] = ()) -> str:
        """Any text up to the first `literal`, which is part of it. `without`: what must not stand before it."""
        if self.has_token(literal):
            return f"{self.anything_without((literal, *without))} {self.marker(literal)}"
        return self.first(f"{self.anything_without(without)} {self.text(literal)}")

    def first(self, expression: str) -> str:
        """Of a terminal's texts the shortest that comes."""
        return self._add_rule(expression, "[lazy]")

    def any_of(self, expressions: Sequence[str]) -> str:
        return f"({' | '.join(expressions)})"

    def terminal(self, expression: str) -> str:
        """A terminal of its own; the same one for the same expression."""
        name = self._terminals.get(expression)
        if name is None:
            name = self._terminals[expression] = f"T{len(self._rules)}"
            self._rules.append(f"{name}: {expression}")
        return name

    def definitions(self) -> str:
        """Of all terminals so far, as Lark has them."""
        return "\n".join(f"{name}: {expression}" for expression, name in self._terminals.items())

    def json(
        self, schema: Schema, *, within: Mapping[str, Any] | None = None, is_lenient: bool = False, **options: Any
    ) -> str:
        """JSON that the schema validates. `within`: the schema that it is a part of, for its references. `is_lenient`:
        keywords that cannot be honoured are left out, not refused. Raises `NotHonoured`."""
        made = EngineSchema(schema, within, is_lenient=is_lenient)
        values: dict[str, Any] = {"whitespace_pattern": _WHITE_SPACE, "lenient": is_lenient, **options}
        if not made.allows_escapes:
            values["json_allowed_escapes"] = PLAIN_ESCAPES
        return self._add_named({"json_schema": {**made.schema, _OPTIONS: values}})

    def lark(self, grammar: str) -> str:
        """A grammar of its own, from its rule `start`."""
        return self._add_named({"lark_grammar": grammar})

    def build(self, start: str) -> str:
        """The whole grammar. Raises `GrammarTooLong`."""
        # Without forcing: a forced text would be tokenized, and what reads like a special token become one.
        lark = "\n".join(['%llguidance {"no_forcing": true}', f"start: {start}", *self._rules])
        grammar = json.dumps({"grammars": [{"lark_grammar": lark}, *self._named]}, ensure_ascii=False)
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise GrammarTooLong(f"at most {MAX_GRAMMAR_CHARS} characters of a grammar are taken, not {len(grammar)}")
        return grammar

    def _add_rule(self, expression: str, attributes: str = "") -> str:
        self._rules.append(f"r{len(self._rules)}{attributes}: {expression}")
        return f"r{len(self._rules) - 1}"

    def _add_named(self, grammar: dict[str, Any]) -> str:
        self._named.append({"name": f"g{len(self._named)}", **grammar})
        return f"@g{len(self._named) - 1}"
