"""The engine core and a grammar process that a test plays: who is held, what is said when, and what a failure ends."""

import select
from collections.abc import Iterator

import numpy as np
import pytest

from engine_core.ipc.codec import encode
from engine_core.ipc.frames import FrameSocket
from engine_core.ipc.grammar_messages import (
    NO_TOKEN,
    AcceptTokens,
    CloseMatcher,
    FillMasks,
    FromGrammar,
    GrammarError,
    MasksReady,
    MatcherFailed,
    MatcherOpened,
    OpenMatcher,
    ToGrammar,
    decode_from_grammar,
    decode_to_grammar,
    encode_grammar_message,
)
from engine_core.ipc.messages import AbortRequest
from engine_core.ipc.sampling_params import SamplingParams
from tests.engine_core.core_harness import TIMEOUT_MS, Harness, Reader, add

BOUND = SamplingParams(max_tokens=4, grammar='start: "a"')


class PlayedGrammars:
    """The core's link, whose other end is the test."""

    refusal = None

    def __init__(self) -> None:
        self._ours, theirs = FrameSocket.pair()
        self._theirs = FrameSocket(theirs)
        self._read: list[ToGrammar] = []

    @property
    def has_unsent(self) -> bool:
        return self._ours.has_unsent

    def fileno(self) -> int:
        return self._ours.fileno()

    def send(self, message: ToGrammar) -> None:
        self._ours.send(encode_grammar_message(message))

    def receive(self) -> list[FromGrammar]:
        return [decode_from_grammar(frame) for frame in self._ours.receive()]

    def say(self, message: FromGrammar) -> None:
        self._theirs.send(encode_grammar_message(message))

    def read(self) -> ToGrammar:
        while not self._read:
            assert select.select([self._theirs], [], [], TIMEOUT_MS / 1000)[0], "the core says nothing"
            self._read += [decode_to_grammar(frame) for frame in self._theirs.receive()]
        return self._read.pop(0)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def grammars() -> Iterator[PlayedGrammars]:
    grammars = PlayedGrammars()
    yield grammars
    grammars.close()


@pytest.fixture
def harness(grammars: PlayedGrammars) -> Iterator[Harness]:
    harness = Harness(grammars=grammars)
    yield harness
    harness.close()


def int32(column: bytes) -> list[int]:
    return np.frombuffer(column, np.int32).tolist()


def test_a_request_runs_once_its_grammar_is_there(harness: Harness, grammars: PlayedGrammars) -> None:
    client = harness.client()
    client.send(encode(add(1, sampling=BOUND)))
    client.send(encode(add(2)))
    reader = Reader(client)
    reader.read_finals(1)
    assert list(reader.finished) == [2], "others do not wait for it"
    opened = grammars.read()
    assert opened == OpenMatcher(matcher=1, grammar='start: "a"')
    grammars.say(MatcherOpened(matcher=1))
    reader.read_finals(2)
    assert len(reader.tokens[1]) == 4

    num_fills, accepted, order = 0, [], []
    while not isinstance(message := grammars.read(), CloseMatcher):
        order.append(message)
        if isinstance(message, FillMasks):
            assert np.frombuffer(message.matchers, np.int64).tolist() == [1]
            num_fills += 1
        else:
            assert isinstance(message, AcceptTokens)
            accepted += int32(message.tokens)
    assert message == CloseMatcher(matcher=1)
    assert num_fills == 4, "one mask for each token, and none beyond max_tokens"
    assert accepted == reader.tokens[1][:3], "the last token needs no mask after it"
    assert [one.sequence for one in order if isinstance(one, FillMasks)] == sorted(
        one.sequence for one in order if isinstance(one, FillMasks)
    )


def test_a_resume_brings_its_output(harness: Harness, grammars: PlayedGrammars) -> None:
    client = harness.client()
    output = np.array([11, 12], np.int32).tobytes()
    client.send(encode(add(1, sampling=BOUND, output_token_ids=output)))
    opened = grammars.read()
    assert isinstance(opened, OpenMatcher)
    assert int32(opened.tokens) == [11, 12]
    grammars.say(MatcherOpened(matcher=1))
    fill = grammars.read()
    assert isinstance(fill, FillMasks)
    Reader(client).read_finals(1)


def test_no_client_may_hold_more_grammars_than_it_leaves_free(harness: Harness, grammars: PlayedGrammars) -> None:
    """Of six places."""
    client = harness.client()
    for handle in range(5):
        client.send(encode(add(handle, sampling=BOUND, share_key="a")))
    client.send(encode(add(5, sampling=BOUND, share_key="b")))
    reader = Reader(client)
    reader.read_finals(2)
    assert [(handle, error.code) for handle, error in sorted(reader.errors.items())] == [
        (3, "overloaded"),
        (4, "overloaded"),
    ]
    for matcher in range(1, 5):
        assert grammars.read() == OpenMatcher(matcher=matcher, grammar='start: "a"', tokens=b"")
        grammars.say(MatcherOpened(matcher=matcher))
    reader.read_finals(6)
    assert sorted(reader.finished) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("is_wrong", "code", "message"),
    [
        (True, "invalid_grammar", "The grammar cannot be honoured: no rule."),
        (False, "resources_exhausted", "No process could be started to try the grammar: no rule; try again."),
    ],
)
def test_a_grammar_that_cannot_be_used_is_an_error_of_the_request(
    harness: Harness, grammars: PlayedGrammars, is_wrong: bool, code: str, message: str
) -> None:
    client = harness.client()
    client.send(encode(add(1, sampling=BOUND)))
    grammars.read()
    grammars.say(MatcherOpened(matcher=1, error=GrammarError("no rule", is_wrong)))
    reader = Reader(client)
    reader.read_finals(1)
    assert (reader.errors[1].code, reader.errors[1].message) == (code, message)
    assert grammars.read() == CloseMatcher(matcher=1)
    client.send(encode(add(1)))  # the id is free again
    reader = Reader(client)
    reader.read_finals(1)
    assert list(reader.finished) == [1]


def test_a_held_request_can_be_aborted(harness: Harness, grammars: PlayedGrammars) -> None:
    client = harness.client()
    client.send(encode(add(1, sampling=BOUND)))
    grammars.read()
    client.send(encode(AbortRequest(handles=[1])))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.finished[1].reason == "abort"
    assert grammars.read() == CloseMatcher(matcher=1)
    grammars.say(MatcherOpened(matcher=1))  # it was under way
    client.send(encode(add(2)))
    reader.read_finals(2)
    assert harness.core.grammars.num_held == 0


def test_a_matcher_that_fails_ends_its_request_before_the_token_counts(
    harness: Harness, grammars: PlayedGrammars
) -> None:
    """The process says so before it publishes the masks, and the core looks before it takes the step's result in."""
    client = harness.client()
    harness.executor.gate.clear()
    client.send(encode(add(1, sampling=BOUND)))
    grammars.read()
    grammars.say(MatcherOpened(matcher=1))
    assert isinstance(grammars.read(), FillMasks)
    grammars.say(MatcherFailed(matcher=1, error="too many states"))
    harness.executor.gate.set()
    harness.executor.ring()
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.errors[1].code == "invalid_grammar"
    assert not reader.tokens.get(1)


def test_a_late_mask_holds_up_no_other_request(harness: Harness, grammars: PlayedGrammars) -> None:
    """Rows without one take as many steps as ever. The late one is planned again when its mask is there, and its tokens
    are what they would have been."""
    client = harness.client()
    reader = Reader(client)
    harness.executor.is_late = lambda mask: True
    client.send(encode(add(1, sampling=BOUND)))
    client.send(encode(add(3, sampling=SamplingParams(max_tokens=4))))
    reader.read_finals(1)
    grammars.read()
    grammars.say(MatcherOpened(matcher=1))
    fills = [grammars.read()]
    before = harness.core.num_collected
    client.send(encode(add(2, sampling=SamplingParams(max_tokens=50))))
    reader.read_finals(2)
    assert len(reader.tokens[2]) == 50
    assert harness.core.num_collected - before <= 50 + harness.config.scheduler.steps_in_flight
    assert 1 not in reader.tokens

    harness.executor.is_late = lambda mask: False
    grammars.say(MasksReady(matchers=np.array([1], np.int64).tobytes()))
    reader.read_finals(3)
    assert reader.tokens[1] == reader.tokens[3]
    accepted: list[int] = []
    while not isinstance(message := grammars.read(), CloseMatcher):
        if isinstance(message, FillMasks):
            fills.append(message)
        else:
            assert isinstance(message, AcceptTokens)
            accepted += int32(message.tokens)
    num_skipped = accepted.count(NO_TOKEN)
    assert 1 <= num_skipped <= harness.config.scheduler.steps_in_flight, "it waits without being planned"
    assert accepted == [NO_TOKEN] * num_skipped + reader.tokens[1][:3]
    assert len(fills) == num_skipped + 4


def test_a_mask_that_never_comes_fails_its_request(grammars: PlayedGrammars) -> None:
    harness = Harness(grammars=grammars, mask_timeout=0.05)
    client = harness.client()
    reader = Reader(client)
    harness.executor.is_late = lambda mask: True
    client.send(encode(add(1, sampling=BOUND)))
    grammars.read()
    grammars.say(MatcherOpened(matcher=1))
    reader.read_finals(1)
    assert reader.errors[1].code == "grammar_timeout"
    assert "0.05 s" in reader.errors[1].message
    while not isinstance(grammars.read(), CloseMatcher):
        pass
    client.send(encode(add(1)))
    grammars.say(MasksReady(matchers=np.array([1], np.int64).tobytes()))  # too late
    reader = Reader(client)
    reader.read_finals(1)
    assert list(reader.finished) == [1]
    harness.close()


def test_a_request_that_waits_for_its_mask_can_be_aborted(harness: Harness, grammars: PlayedGrammars) -> None:
    client = harness.client()
    reader = Reader(client)
    harness.executor.is_late = lambda mask: True
    client.send(encode(add(1, sampling=BOUND)))
    grammars.read()
    grammars.say(MatcherOpened(matcher=1))
    while not (isinstance(message := grammars.read(), AcceptTokens) and int32(message.tokens) == [NO_TOKEN]):
        pass
    client.send(encode(AbortRequest(handles=[1])))
    reader.read_finals(1)
    assert reader.finished[1].reason == "abort"
    assert harness.core.grammars.overdue(float("inf")) == []


def test_without_a_grammar_process_grammars_are_refused() -> None:
    harness = Harness()
    client = harness.client()
    client.send(encode(add(1, sampling=BOUND)))
    reader = Reader(client)
    reader.read_finals(1)
    assert reader.errors[1].code == "invalid_grammar"
    harness.close()
