"""Formats drawn at random: a grammar takes exactly the texts that its format means, or the format is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from frontend.errors import ApiError
from tests.frontend.grammars.formats import ANY, fits, grammar_of, lark_of, matcher_of
from tests.frontend.grammars.reference import SCHEMAS, is_in

ALPHABET = 'ab<>1"tfrue'
FRAGMENTS = ("a", "b", "<", ">", "<a", "ab", "1", "12", "true", "false", '"a"', '"b"')
WORDS = ("", "a", "b", "ab", "ba", "<", "<a", "<b", "aa", "1", "<<")
PATTERNS = ("[ab]+", "a*", "a(bc)?", "[^<]*", ".*", "[0-9]+", "(ab|a)", "<[ab]*>", "[a-z]+")

words = st.sampled_from(WORDS)
some_words = st.sampled_from([word for word in WORDS if word])
leaves = st.one_of(
    st.builds(lambda value: {"type": "const_string", "value": value}, words),
    st.builds(lambda pattern: {"type": "regex", "pattern": pattern}, st.sampled_from(PATTERNS)),
    st.builds(lambda value: {"type": "json_schema", "json_schema": value}, st.sampled_from(list(SCHEMAS.values()))),
    st.just(ANY),
    st.builds(
        lambda excludes: {"type": "any_text", "excludes": excludes},
        st.lists(some_words, min_size=1, max_size=2, unique=True),
    ),
)


def tags(inner: st.SearchStrategy[Any], begins: st.SearchStrategy[str] = words) -> st.SearchStrategy[Any]:
    ends = st.one_of(some_words, st.lists(some_words, min_size=1, max_size=2, unique=True))
    return st.builds(
        lambda begin, content, end: {"type": "tag", "begin": begin, "content": content, "end": end}, begins, inner, ends
    )


@st.composite
def triggered_tags(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    triggers = draw(st.lists(some_words, min_size=1, max_size=2, unique=True))
    begins = st.builds(lambda trigger, rest: trigger + rest, st.sampled_from(triggers), words)
    return {
        "type": "triggered_tags",
        "triggers": triggers,
        "tags": draw(st.lists(tags(inner, begins), min_size=1, max_size=3)),
        "at_least_one": draw(st.booleans()),
        "stop_after_first": draw(st.booleans()),
        "excludes": draw(st.lists(some_words, max_size=1)),
    }


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda elements: {"type": "sequence", "elements": elements}, some),
        st.builds(lambda elements: {"type": "or", "elements": elements}, some),
        st.builds(lambda content: {"type": "optional", "content": content}, inner),
        st.builds(
            lambda content, least, most: {"type": "repeat", "content": content, "min": least, "max": most},
            inner,
            st.integers(0, 2),
            st.sampled_from((-1, 2, 3)),
        ),
        tags(inner),
        triggered_tags(inner),
        st.builds(
            lambda tags, separator, at_least_one, stop: {
                "type": "tags_with_separator",
                "tags": tags,
                "separator": separator,
                "at_least_one": at_least_one,
                "stop_after_first": stop,
            },
            st.lists(tags(inner), min_size=1, max_size=2),
            words,
            st.booleans(),
            st.booleans(),
        ),
    )


formats = st.recursive(leaves, composed, max_leaves=5)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)


@pytest.mark.slow
@settings(max_examples=400)
@given(formats, st.lists(texts, min_size=8, max_size=8), st.randoms(use_true_random=False))
def test_a_grammar_is_what_its_format_means(form: Any, drawn: list[str], rng: Any) -> None:
    try:
        grammar = grammar_of(form)
    except ApiError as error:
        refusal = error.param or ""
    else:
        refusal = None
    event("taken" if refusal is None else "refused")
    if refusal is not None:
        assert refusal.startswith("structured_outputs.structural_tag.format")
        return
    matcher = matcher_of(grammar)
    for text in drawn:
        assert fits(matcher, text) == is_in(form, text), (text, lark_of(grammar))
    # And texts that the grammar leads to itself.
    letters = np.frombuffer(ALPHABET.encode(), np.uint8)
    for _ in range(4):
        own, text = matcher.deep_copy(), ""
        while len(text) < 12 and not own.is_stopped():
            if own.is_accepting():
                assert is_in(form, text), (text, lark_of(grammar))
            bits = np.unpackbits(np.frombuffer(own.compute_bitmask(), np.uint8), bitorder="little")
            allowed = [int(letter) for letter in letters if bits[letter]]
            if not allowed:
                break
            letter = rng.choice(allowed)
            assert own.consume_token(letter)
            text += chr(letter)
            assert fits(matcher, text) == is_in(form, text), (text, lark_of(grammar))
