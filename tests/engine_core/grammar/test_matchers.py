"""Masks in step with tokens: order, matchers that ended, matchers that fail, and who shares what with whom."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine_core.grammar.compiler import Grammar, Lexer
from engine_core.grammar.matchers import Matchers, max_lexers, num_mask_threads
from engine_core.grammar.vocabulary import Vocabulary
from engine_core.ipc.grammar_messages import NO_TOKEN
from engine_core.ipc.step import LateMasks

DEMO_MODEL = Path(__file__).parents[3] / "demo_model"
VOCAB_SIZE, NUM_ROWS, EOS = 8192, 4, (1, 7)
HUNGRY = json.dumps({"grammars": [{"lark_grammar": "start: /(.*a.{30}){20}/"}]})
"""Its lexer has more states than are allowed, and random text finds them."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(str(DEMO_MODEL), VOCAB_SIZE, EOS)


def late_masks(num_rows: int, num_words: int) -> LateMasks:
    return LateMasks(np.zeros(num_rows, np.int64), np.zeros((num_rows, num_words), np.int32))


class Setup:
    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1) -> None:
        self.vocabulary = vocabulary
        self.late = {n: late_masks(NUM_ROWS, VOCAB_SIZE // 32) for n in range(1, 400)}
        self.published: list[int] = []
        self.failed: dict[int, str] = {}
        self.ready: list[int] = []
        self.num_renewed = 0
        self.matchers = Matchers(
            VOCAB_SIZE,
            EOS,
            lambda sequence: self.late[sequence],
            self.published.append,
            self.ready.extend,
            self._compile_again,
            lambda number, error: self.failed.update({number: error}),
            num_threads,
        )

    def _compile_again(self, grammar: Grammar):
        self.num_renewed += 1
        return self.vocabulary.compile(grammar.text)

    def grammar(self, text: str) -> Grammar:
        return Grammar(text, True, [Lexer(self.vocabulary.compile(text))])

    def allowed(self, sequence: int, mask: int = 0) -> list[int]:
        words = self.late[sequence].masks[mask]
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()

    def ids(self, text: str) -> list[int]:
        return self.vocabulary.tokenizer.tokenize_str(text)


@pytest.fixture(params=[1, 2])
def setup(vocabulary: Vocabulary, request: pytest.FixtureRequest) -> Setup:
    return Setup(vocabulary, request.param)


@pytest.mark.parametrize(("num_processors", "num_threads"), [(1, 1), (2, 1), (6, 1), (8, 4), (16, 8), (128, 8)])
def test_threads_by_processors(num_processors: int, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: num_processors)
    assert num_mask_threads() == num_threads
    assert max_lexers(num_threads) == (1 if num_threads == 1 else 4 * num_threads)


def test_a_mask_waits_for_its_token_and_steps_stay_in_order(setup: Setup) -> None:
    (yes,) = setup.ids("y")
    matchers, grammar = setup.matchers, setup.grammar('start: "y" | "n"')
    for number in (1, 2):
        assert matchers.open(number, grammar, []) is None
    matchers.order(1, [1])
    matchers.order(2, [2, 1])  # the second mask needs the token of the first step
    matchers.fill()
    assert setup.published == [1]
    assert yes in setup.allowed(1)
    assert not set(setup.allowed(1)) & set(EOS)
    matchers.accept([1], [yes])
    matchers.fill()
    assert setup.published == [1, 2]
    assert setup.allowed(2, 0) == setup.allowed(1)
    assert setup.allowed(2, 1) == sorted(EOS), "a complete answer can only end"


def test_a_matcher_that_ended_holds_up_nobody(setup: Setup) -> None:
    matchers = setup.matchers
    matchers.open(1, setup.grammar('start: "a"'), [])
    matchers.order(1, [1])
    matchers.order(2, [1])
    matchers.fill()
    assert setup.published == [1]
    matchers.close(1)
    matchers.fill()
    assert setup.published == [1, 2]
    assert len(setup.allowed(2)) == VOCAB_SIZE
    matchers.close(1)
    matchers.accept([1], [3])
    assert len(matchers) == 0


def test_a_resumed_output_goes_on(setup: Setup) -> None:
    tokens = setup.ids('{"a')
    grammar = setup.grammar('start: %json {"const": {"a": 1}}')
    assert setup.matchers.open(1, grammar, tokens) is None
    setup.matchers.order(1, [1])
    setup.matchers.fill()
    assert setup.published == [1]
    assert setup.matchers.open(2, grammar, setup.ids("[1]")) is not None, "an output that the grammar does not know"


def test_a_token_that_does_not_follow_fails_its_matcher_alone(setup: Setup) -> None:
    matchers, grammar = setup.matchers, setup.grammar('start: "yes"')
    matchers.open(1, grammar, [])
    matchers.open(2, grammar, [])
    matchers.order(1, [1])
    matchers.fill()
    matchers.accept([1], setup.ids("no")[:1])
    matchers.order(2, [1, 2])
    matchers.fill()
    assert list(setup.failed) == [1]
    assert setup.published == [1, 2]
    assert len(setup.allowed(2, 0)) == 1
    assert not set(setup.allowed(2, 0)) & set(EOS), "nobody may take it for complete"
    assert setup.ids("yes")[0] in setup.allowed(2, 1)


def test_a_late_mask_is_ready_when_it_is_asked_for_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that skip a request say so; the mask of the first of them serves the next step, and is computed once."""
    computed = 0
    compute = Matchers._compute

    def count(self: Matchers, masks: np.ndarray, ready: list) -> None:
        nonlocal computed
        computed += len(ready)
        compute(self, masks, ready)

    monkeypatch.setattr(Matchers, "_compute", count)
    matchers, grammar = setup.matchers, setup.grammar('start: "yes"')
    for number in (1, 2):
        matchers.open(number, grammar, [])
    matchers.order(1, [1])
    matchers.order(2, [1])
    matchers.order(3, [2, 1])
    matchers.fill()
    wanted = setup.allowed(1)
    assert (setup.published, computed) == ([1], 1)
    matchers.accept([1, 1], [NO_TOKEN, NO_TOKEN])  # the first mask came when its step and the next had ended
    setup.late[1].masks[:] = 0  # the slot is used again
    matchers.fill()
    assert setup.late[2].sequences[0] == 0, "nobody reads a mask of a step that has ended"
    assert setup.published == [1, 2, 3]
    assert setup.allowed(3, 1) == wanted
    assert setup.late[3].sequences.tolist() == [3, 3, 0, 0]
    assert setup.ready == [1]
    assert computed == 2, "one for each request"
    (yes,) = setup.ids("yes")[:1]
    matchers.accept([1], [yes])
    matchers.order(4, [1])
    matchers.fill()
    assert setup.published[-1] == 4
    assert setup.allowed(4) != wanted
    assert setup.ready == [1]


def test_a_request_that_was_skipped_before_its_mask_was_begun(setup: Setup) -> None:
    """Its mask is made for the step to come, and it is said so."""
    matchers, grammar = setup.matchers, setup.grammar('start: "yes"')
    matchers.open(1, grammar, [])
    matchers.order(1, [1])
    matchers.accept([1], [NO_TOKEN])
    matchers.fill()
    assert (setup.published, setup.ready) == ([1], [1])
    assert not setup.late[1].sequences.any()
    matchers.order(2, [1])
    matchers.fill()
    assert setup.ids("yes")[0] in setup.allowed(2)


def test_masks_of_one_step_arrive_one_by_one(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow one holds up none before it."""
    setup = Setup(vocabulary)
    arrived: list[list[int]] = []
    compute = Matchers._compute

    def note(self: Matchers, masks: np.ndarray, ready: list) -> None:
        arrived.append(setup.late[1].sequences.tolist())
        compute(self, masks, ready)

    monkeypatch.setattr(Matchers, "_compute", note)
    for number in (1, 2):
        setup.matchers.open(number, setup.grammar('start: "yes"'), [])
    setup.matchers.order(1, [1, 2])
    setup.matchers.fill()
    assert arrived == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_who_uses_up_a_lexer_harms_nobody_else(vocabulary: Vocabulary) -> None:
    """Matchers of one grammar share its lexer: when its states are used up, whoever needs more gets a fresh one."""
    setup = Setup(vocabulary)
    grammar, rng = setup.grammar(HUNGRY), np.random.default_rng(0)
    matchers = setup.matchers
    matchers.open(1, grammar, [])
    sequence = 0
    while not setup.failed:  # its own lexer is used up as well
        sequence += 1
        matchers.order(sequence, [1])
        matchers.fill()
        matchers.accept([1], [int(rng.choice(setup.allowed(sequence)))])
    assert setup.num_renewed == 1
    assert "states" in setup.failed[1]
    matchers.open(2, grammar, [])
    matchers.order(sequence + 1, [2])
    matchers.fill()
    assert 2 not in setup.failed
    assert len(setup.allowed(sequence + 1)) > 1000
