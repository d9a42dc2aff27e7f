"""Compiling strangers' grammars: what passes, what is refused, what is killed, and what is kept."""

import errno
import itertools
import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from llguidance import LLMatcher

from engine_core.grammar.compiler import Grammar, GrammarCache, GrammarCompiler, Lexer
from engine_core.grammar.matchers import Matchers
from engine_core.grammar.vocabulary import Vocabulary, VocabularyError
from engine_core.ipc.grammar_messages import GrammarError
from engine_core.ipc.step import LateMasks

DEMO_MODEL = Path(__file__).parents[3] / "demo_model"
GOOD = 'start: "yes" | "no"'
SLOW = json.dumps({"grammars": [{"json_schema": {"type": "integer", "multipleOf": 999_983}}]})
"""Seconds and hundreds of megabytes: its remainders are states, and none of llguidance's own limits counts them."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(str(DEMO_MODEL), 8192, (1, 7))


@pytest.fixture
def compiler(vocabulary: Vocabulary) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(vocabulary)
    yield compiler
    compiler.close()
    assert not psutil.pid_exists(compiler.trials.pid)


def compile_all(
    compiler: GrammarCompiler, texts: list[str]
) -> dict[str, tuple[Grammar | None, GrammarError | None, float]]:
    """What came of each, and when."""
    results: dict[str, tuple[Grammar | None, GrammarError | None, float]] = {}
    start = time.monotonic()
    for text in texts:
        compiler.request(
            text, lambda grammar, error, text=text: results.update({text: (grammar, error, time.monotonic() - start)})
        )
    while len(results) < len(set(texts)):
        assert select.select([compiler.trials.fileno(), compiler.fileno()], [], [], 30)[0]
        compiler.collect()
    return results


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    grammar, error, _ = compile_all(compiler, [GOOD])[GOOD]
    assert error is None
    assert grammar is not None
    again: list[Grammar | None] = []
    compiler.request(GOOD, lambda found, _: again.append(found))
    assert again == [grammar], "what is in the cache is there at once"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("start: ]", "expecting rule"),
        ("start: /(/", "unclosed group"),
        ('{"grammars": [{"json_schema": {"not": {}}}]}', "Unimplemented"),
        ('{"grammars": [{"json_schema": {"type": "string", "format": "what"}}]}', "Unknown format"),
        ('{"grammars": [{"json_schema": {"$ref": "#/$defs/nowhere"}}]}', "does not exist"),
        ('{"grammars": [{"json_schema": {"$ref": "https://example.com/a.json"}}]}', "not present"),
        ('{"grammars": 3}', ""),
        ("{", ""),
    ],
)
def test_what_is_wrong_is_said_in_one_line(compiler: GrammarCompiler, text: str, reason: str) -> None:
    grammar, error, _ = compile_all(compiler, [text])[text]
    assert grammar is None
    assert error is not None
    assert error.is_wrong
    assert reason in error.reason
    assert "\n" not in error.reason


@pytest.mark.slow
def test_what_takes_too_long_is_killed_and_delays_nobody(compiler: GrammarCompiler) -> None:
    results = compile_all(compiler, [SLOW, GOOD])
    grammar, error, seconds = results[SLOW]
    assert grammar is None
    assert error is not None
    assert "seconds" in error.reason or "memory" in error.reason
    assert results[GOOD][1] is None
    assert results[GOOD][2] < seconds
    assert not psutil.Process(compiler.trials.pid).children(), "nothing of it is left"


@pytest.mark.parametrize(("call", "number"), [("fork", errno.EAGAIN), ("fork", errno.ENOMEM), ("pipe", errno.EMFILE)])
def test_a_child_that_cannot_be_had_refuses_one_grammar(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """The first child of the process that tries grammars; that process goes on."""
    real, num_calls = getattr(os, call), itertools.count()
    failing = 1 if call == "fork" else 0  # the first fork is of that process

    def fail_once() -> object:
        if next(num_calls) == failing:
            raise OSError(number, os.strerror(number))
        return real()

    monkeypatch.setattr(os, call, fail_once)
    compiler = GrammarCompiler(vocabulary)
    monkeypatch.undo()
    grammar, error, _ = compile_all(compiler, [GOOD])[GOOD]
    assert grammar is None
    assert error is not None
    assert os.strerror(number) in error.reason
    assert not error.is_wrong
    for text in (GOOD, 'start: "other"'):
        assert compile_all(compiler, [text])[text][1] is None
    compiler.close()


def test_many_who_wait_for_one_grammar(compiler: GrammarCompiler) -> None:
    found: list[Grammar | None] = []
    for _ in range(3):
        compiler.request(GOOD, lambda grammar, _: found.append(grammar))
    assert compile_all(compiler, [GOOD])[GOOD][1] is None
    assert len(found) == 3
    assert len(set(map(id, found))) == 1


def test_many_matchers_of_a_grammar_have_several_lexers(vocabulary: Vocabulary) -> None:
    """Four each, as far as that goes; whoever asks when all are taken waits for the next one alone."""
    compiler = GrammarCompiler(vocabulary, max_lexers=3)
    published: list[int] = []
    late = LateMasks(np.zeros(16, np.int64), np.zeros((16, 256), np.int32))
    matchers = Matchers(
        8192,
        (1, 7),
        lambda _: late,
        published.append,
        lambda _: None,
        compiler.compile_again,
        lambda *_: None,
        num_threads=2,
    )
    opened: list[Lexer] = []

    def open_one(grammar: Grammar | None, error: GrammarError | None) -> None:
        assert grammar is not None
        opened.append(grammar.idlest())
        assert matchers.open(len(opened), grammar, []) is None

    for _ in range(16):
        compiler.request(GOOD, open_one)
    while len(opened) < 16:
        assert select.select([compiler.trials.fileno(), compiler.fileno()], [], [], 30)[0]
        compiler.collect()
    lexers = list(dict.fromkeys(opened))
    assert [lexer.num_open for lexer in lexers] == [6, 5, 5]
    assert opened[:12] == [lexer for lexer in lexers for _ in range(4)]
    assert compiler.cache.num_bytes > 3 * 64 * 2**10

    matchers.order(1, list(range(1, 17)))
    matchers.fill()
    assert published == [1]
    assert late.masks[0].any()
    assert (late.masks == late.masks[0]).all()
    for number in range(1, 17):
        matchers.close(number)
    assert [lexer.num_open for lexer in lexers] == [0, 0, 0]
    compiler.request(GOOD, open_one)
    assert len(opened) == 17, "there is room, so nothing is compiled"
    compiler.close()


def test_a_lexer_more_that_cannot_be_had(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then those that are there must do, for all who ask."""
    compiler = GrammarCompiler(vocabulary, max_lexers=3)
    compile_all(compiler, [GOOD])
    compiler.request(GOOD, lambda grammar, _: setattr(grammar.idlest(), "num_open", 4))
    monkeypatch.setattr(Vocabulary, "compile", lambda self, text: LLMatcher(self.tokenizer, "start: ]", log_level=0))
    found: list[Grammar | None] = []
    for _ in range(2):
        compiler.request(GOOD, lambda grammar, _: found.append(grammar))
    assert not found
    while not found:
        assert select.select([compiler.fileno()], [], [], 30)[0]
        compiler.collect()
    assert found[0] is not None
    assert found == [found[0]] * 2
    assert len(found[0].lexers) == 1
    compiler.close()


def test_the_cache_is_bounded_by_bytes(vocabulary: Vocabulary) -> None:
    cache = GrammarCache(max_bytes=10 * 2**20)
    for number in range(20):
        lexer = Lexer(vocabulary.compile('start: "a"'))
        cache.put(Grammar(f'start: "{number}"', True, [lexer], 2**20))
        assert cache.num_bytes <= 10 * 2**20
        assert cache.get('start: "0"') is not None, "what is used stays"
    assert 5 < len(cache) < 10
    assert cache.get('start: "1"') is None


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"tokenizer\.json"):
        Vocabulary.load(str(tmp_path), 100, (1,))


def test_texts_are_whole_whatever_the_tokenizer_was_trained_with(vocabulary: Vocabulary, tmp_path: Path) -> None:
    text = "What does the function os.path.join do, and when is it of use?"
    whole = vocabulary.tokenizer.tokenize_str(text)
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_bytes())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_id": 2, "pad_type_id": 0, "pad_token": "<|pad|>"}
    for changes in ({}, {"truncation": None, "padding": {**padding, "pad_to_multiple_of": None}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | changes))
        assert Vocabulary.load(str(tmp_path), 8192, (1, 7)).tokenizer.tokenize_str(text) == whole
    assert len(whole) > 8
