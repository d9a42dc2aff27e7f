"""The works: lengths and totals that figures are quoted under, and prompts that repeats do not share."""

import pytest

from benchmarks.works import WARM_UP, WORKS, make_work

VOCAB_SIZE = 1000


@pytest.mark.parametrize(
    ("name", "num_requests", "num_in", "num_out"),
    [
        ("decode1", 1, 128, 256),
        ("decode64", 64, 64 * 512, 64 * 256),
        ("prefill", 32, 32 * 4096, 32),
        ("prefix", 512, 512 * 2112, 512 * 32),
        ("assistants", 1024, 1024 * 2176, 1024 * 256),
        ("tput", 1000, 1000 * 1024, 1000 * 128),
        ("nano", 256, 142_827, 133_966),
        ("mixed32", 32, 4_719, 3_685),
    ],
)
def test_sizes(name: str, num_requests: int, num_in: int, num_out: int) -> None:
    work = make_work(name, VOCAB_SIZE)
    assert (len(work.requests), work.num_input_tokens, work.num_output_tokens) == (num_requests, num_in, num_out)
    assert work.temperature == (0.6 if name == "nano" else 0.0)


@pytest.mark.parametrize("name", sorted(WORKS))
def test_repeats_have_the_same_lengths_and_share_nothing(name: str) -> None:
    works = [make_work(name, VOCAB_SIZE, repeat, scale=8) for repeat in (WARM_UP, 0, 1)]
    lengths = [[(len(request.prompt), request.num_output_tokens) for request in work.requests] for work in works]
    assert lengths[0] == lengths[1] == lengths[2]
    assert len({tuple(work.requests[0].prompt) for work in works}) == 3
    assert make_work(name, VOCAB_SIZE, 1, scale=8) == works[2]
    assert all(0 <= token < VOCAB_SIZE for work in works for request in work.requests for token in request.prompt)


def test_only_the_stated_tokens_are_shared() -> None:
    work = make_work("prefix", VOCAB_SIZE)
    assert work.num_shared_tokens == 2048
    assert len({tuple(request.prompt[:2048]) for request in work.requests}) == 1
    assert len({tuple(request.prompt[2048:]) for request in work.requests}) == 512


def test_groups_share_their_own_beginnings_in_turn() -> None:
    work = make_work("assistants", VOCAB_SIZE)
    beginnings = [tuple(request.prompt[:2048]) for request in work.requests]
    assert len(set(beginnings)) == len(set(beginnings[:64])) == 64
    assert beginnings == beginnings[:64] * 16
    assert work.num_shareable_tokens == 15 * 64 * 2048


@pytest.mark.parametrize("name", sorted(WORKS))
def test_scale_never_leaves_nothing(name: str) -> None:
    work = make_work(name, VOCAB_SIZE, scale=100_000)
    assert len(work.requests) == 1
    assert work.requests[0].num_output_tokens == 1
    assert work.requests[0].prompt
