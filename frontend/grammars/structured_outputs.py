"""What an answer has to be, whoever says so: `structured_outputs`, its older names, or `response_format`.

One of them becomes a Lark expression. Whether a grammar can be compiled is the engine's to say; here it is made sure
that it says what the client said.
"""

import re
from typing import Any

import msgspec

from frontend.grammars.builder import GrammarBuilder
from frontend.json_schema import check_schema

MAX_CHOICES = 10_000
_MAX_EBNF_CHARS = 64 * 2**10
"""Of a grammar that has to be translated."""
_KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


class StructuredOutputs(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Exactly one of the kinds is given."""

    json: Any = None
    """A JSON schema, or its text."""
    json_object: bool | None = None
    regex: str | None = None
    """The whole answer, in the syntax of Rust's crate `regex`."""
    choice: list[str] | None = None
    grammar: str | None = None
    """Lark, or EBNF as llama.cpp has it (`root ::= ...`)."""
    structural_tag: Any = None
    """Tagged parts within free text: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, or its text."""
    disable_any_whitespace: bool = False
    """JSON without white space between its tokens."""


class WrongStructure(ValueError):
    """What a client asked for cannot be had; `field` is where, from `structured_outputs` on."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def structure_expression(asked: StructuredOutputs, builder: GrammarBuilder) -> str:
    """The answer as a Lark expression. Raises `WrongStructure`, or an `ApiError` about a schema's part."""
    given = [kind for kind in _KINDS if getattr(asked, kind) not in (None, False)]
    if len(given) != 1:
        raise WrongStructure("", f"must have exactly one of {', '.join(_KINDS)}.")
    match given[0]:
        case "json":
            return builder.json(json_schema(asked.json, "json"), **_json_options(asked))
        case "json_object":
            return builder.json({"type": "object"}, **_json_options(asked))
        case "regex":
            return builder.terminal(f"/{_lark_regex(asked.regex or '')}/")
        case "choice":
            return _choice(asked.choice or [], builder)
        case "grammar":
            return builder.lark(_lark(asked.grammar or ""))
    return _structural_tag(_decoded(asked.structural_tag, "structural_tag"), builder)


def json_schema(value: Any, where: str) -> dict[str, Any] | bool:
    """A schema, or its text, checked in its form."""
    schema = _decoded(value, where)
    check_schema(schema, where)
    assert isinstance(schema, dict | bool)
    return schema


def _json_options(asked: StructuredOutputs) -> dict[str, Any]:
    return {"whitespace_pattern": None, "whitespace_flexible": False} if asked.disable_any_whitespace else {}


def _decoded(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WrongStructure(where, f"must be JSON: {error}.") from error


def _lark_regex(regex: str) -> str:
    if not regex:
        raise WrongStructure("regex", "must not be empty.")
    from llguidance import regex_to_lark

    escaped: str = regex_to_lark(regex, "d")
    return escaped


def _choice(choices: list[str], builder: GrammarBuilder) -> str:
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise WrongStructure("choice", f"must have 1 to {MAX_CHOICES} texts that are not empty.")
    return builder.terminal(" | ".join(builder.text(choice) for choice in choices))


def _lark(grammar: str) -> str:
    """Lark as it is, EBNF translated."""
    if "::=" not in grammar:
        if not re.search(r"^\s*start\s*(\[[^\]]*\]\s*)?:", grammar, re.MULTILINE):
            raise WrongStructure("grammar", "must have a rule 'start' (Lark) or 'root ::=' (EBNF).")
        return grammar
    if len(grammar) > _MAX_EBNF_CHARS:
        raise WrongStructure("grammar", f"must have at most {_MAX_EBNF_CHARS} characters as EBNF.")
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        translated: str = gbnf_to_lark(grammar)
    except (GbnfToLarkError, ValueError, KeyError, IndexError, RecursionError) as error:
        raise WrongStructure("grammar", f"is not EBNF that can be translated: {error}.") from error
    return translated


class _Structure(msgspec.Struct, kw_only=True):
    begin: str
    schema: Any = True
    end: str


class _StructuralTag(msgspec.Struct, kw_only=True):
    structures: list[_Structure]
    triggers: list[str]


def _structural_tag(value: Any, builder: GrammarBuilder) -> str:
    """Free text in which each trigger begins one of the structures."""
    try:
        tag = msgspec.convert(value, _StructuralTag)
    except msgspec.ValidationError as error:
        raise WrongStructure("structural_tag", f"must have structures and triggers: {error}.") from error
    if not tag.structures or not all(tag.triggers):
        raise WrongStructure("structural_tag", "must have structures and triggers that are not empty.")
    parts = {trigger: list[str]() for trigger in tag.triggers}
    for index, one in enumerate(tag.structures):
        where = f"structural_tag.structures[{index}]"
        trigger = next((trigger for trigger in tag.triggers if one.begin.startswith(trigger)), None)
        if trigger is None:
            raise WrongStructure(f"{where}.begin", "must begin with one of the triggers.")
        rest = one.begin.removeprefix(trigger)
        schema = builder.json(json_schema(one.schema, f"{where}.schema"))
        parts[trigger].append(f"{builder.text(rest)} {schema} {builder.marker(one.end)}")
    bound = [f"{builder.anything_until(trigger)} {builder.any_of(rests)}" for trigger, rests in parts.items() if rests]
    return f"{builder.any_of(bound)}* {builder.anything()}"
