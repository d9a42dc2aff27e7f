"""Matchers of schemas as requests bring them."""

import json
from functools import cache
from typing import Any

from llguidance import LLMatcher

from frontend.grammars.builder import GrammarBuilder
from tests.frontend.grammars.formats import fits, matcher_of


def schema_matcher(schema: Any, *, is_lenient: bool = False) -> LLMatcher:
    builder = GrammarBuilder(lambda _: None)
    return matcher_of(builder.build(builder.json(schema, is_lenient=is_lenient)))


@cache
def known_matcher(schema: str) -> LLMatcher:
    return schema_matcher(json.loads(schema))


def takes(schema: Any, text: str) -> bool:
    return fits(known_matcher(json.dumps(schema)), text)
