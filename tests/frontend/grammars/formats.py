"""Formats of structural tags for tests, and texts run against their grammars."""

import json
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from frontend.grammars.request_grammar import grammar_text
from frontend.grammars.structured_outputs import StructuredOutputs

Format = dict[str, Any]

ANY: Format = {"type": "any_text"}
BYTES = LLTokenizer("byte")


def const(value: str) -> Format:
    return {"type": "const_string", "value": value}


def schema(value: Any) -> Format:
    return {"type": "json_schema", "json_schema": value}


def regex(pattern: str) -> Format:
    return {"type": "regex", "pattern": pattern}


def ebnf(grammar: str) -> Format:
    return {"type": "grammar", "grammar": grammar}


def sequence(*elements: Any) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Any) -> Format:
    return {"type": "or", "elements": list(elements)}


def tag(begin: str, content: Any, end: str | list[str]) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def triggered(triggers: list[str], tags: list[Format], **options: Any) -> Format:
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags, **options}


def separated(tags: list[Format], separator: str, **options: Any) -> Format:
    return {"type": "tags_with_separator", "tags": tags, "separator": separator, **options}


def grammar_of(form: Format, token_id_of: Callable[[str], int | None] = lambda _: None) -> str:
    return grammar_text(
        StructuredOutputs(structural_tag={"type": "structural_tag", "format": form}),
        token_id_of,
    )


def matcher_of(grammar: str) -> LLMatcher:
    """One that reads bytes."""
    matcher = LLMatcher(BYTES, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def fits(matcher: LLMatcher, text: str) -> bool:
    """Whether the whole text is in the language of a matcher that stands at its beginning."""
    own, encoded = matcher.deep_copy(), list(text.encode())
    return own.try_consume_tokens(encoded) == len(encoded) and own.is_accepting()


def lark_of(grammar: str) -> str:
    """The rules alone, for a failed test's message."""
    return str(json.loads(grammar)["grammars"][0]["lark_grammar"])
