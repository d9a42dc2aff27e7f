"""What an answer has to be, whoever says so: `structured_outputs`, its older names, or `response_format`.

One of them becomes a Lark expression. Whether a grammar can be compiled is the engine's to say; here it is made sure
that it says what the client said.
"""

from typing import Any

import msgspec

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.client_parts import WrongStructure, lark_pattern
from frontend.grammars.client_schema import schema_expression
from frontend.grammars.lark import lark_grammar
from frontend.grammars.structural_tag import structural_tag_expression

MAX_CHOICES = 10_000
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
    """{"type": "structural_tag", "format": {...}}, or its text; in the older form tagged parts within free text:
    {"structures": [{"begin", "schema", "end"}], "triggers": [...]}."""
    disable_any_whitespace: bool = False
    """JSON without white space between its tokens."""


def structure_expression(asked: StructuredOutputs, builder: GrammarBuilder) -> str:
    """The answer as a Lark expression. Raises `WrongStructure`, or an `ApiError` about a schema's part."""
    given = [kind for kind in _KINDS if getattr(asked, kind) not in (None, False)]
    if len(given) != 1:
        raise WrongStructure("", f"must have exactly one of {', '.join(_KINDS)}.")
    match given[0]:
        case "json":
            return schema_expression(asked.json, "json", builder, _json_options(asked))
        case "json_object":
            return builder.json({"type": "object"}, **_json_options(asked))
        case "regex":
            return builder.terminal(lark_pattern(asked.regex or "", "regex"))
        case "choice":
            return _choice(asked.choice or [], builder)
        case "grammar":
            return builder.lark(lark_grammar(asked.grammar or "", "grammar"))
    return structural_tag_expression(asked.structural_tag, builder, _json_options(asked))


def _json_options(asked: StructuredOutputs) -> dict[str, Any]:
    return {"whitespace_pattern": None, "whitespace_flexible": False} if asked.disable_any_whitespace else {}


def _choice(choices: list[str], builder: GrammarBuilder) -> str:
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise WrongStructure("choice", f"must have 1 to {MAX_CHOICES} texts that are not empty.")
    return builder.terminal(" | ".join(builder.text(choice) for choice in choices))
