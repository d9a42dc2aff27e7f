"""Padded step sizes: every step finds one, none wastes much."""

import pytest

from engine_core.config.step_sizes import StepSize, StepSizes


@pytest.mark.parametrize(
    ("max_num_seqs", "max_tokens"), [(1, 1), (3, 3), (6, 24), (256, 8192), (1000, 1000), (256, 300)]
)
def test_every_step_fits(max_num_seqs: int, max_tokens: int) -> None:
    sizes = StepSizes(max_num_seqs, max_tokens)
    captured = set(sizes.all())
    for num_seqs in range(1, min(max_num_seqs, max_tokens) + 1):
        size = sizes.fit(num_seqs, num_seqs)
        assert size in captured
        assert size.is_decode
        assert num_seqs <= size.num_seqs == size.num_tokens <= max_num_seqs
        assert size.num_seqs - num_seqs < max(8, size.num_seqs // 8)
    for num_tokens in range(2, max_tokens + 1):
        size = sizes.fit(num_tokens, 1)
        assert size in captured
        assert not size.is_decode
        assert num_tokens <= size.num_tokens <= max_tokens
        assert size.num_seqs == max_num_seqs
        assert size.num_tokens - num_tokens <= max(64, num_tokens // 4)


def test_a_common_beginning_is_read_apart_where_that_spares_enough() -> None:
    sizes = StepSizes(300, 8192, shares_beginnings=True)
    captured = set(sizes.all())
    for num_seqs in range(1, 301):
        size = sizes.fit(num_seqs, num_seqs, is_shared=True)
        assert size in captured
        assert size.is_shared
        assert num_seqs <= size.num_seqs == size.num_tokens <= 300
        assert size.num_seqs - num_seqs < 32
    assert sizes.shares(256, 256, 2048)
    assert not sizes.shares(1, 1, 10**6)
    assert not sizes.shares(256, 256, 0)
    assert not sizes.shares(300, 256, 2048), "a step with prompts"
    assert not StepSizes(300, 8192).shares(256, 256, 2048)


def test_the_largest_are_captured_first() -> None:
    sizes = StepSizes(256, 8192).all()
    mixed = [size.num_tokens for size in sizes if not size.is_decode]
    decode = [size.num_seqs for size in sizes if size.is_decode]
    assert mixed == sorted(mixed, reverse=True)
    assert decode == sorted(decode, reverse=True)
    assert sizes[0] == StepSize(8192, 256, False)
    assert len(sizes) == len(set(sizes)) < 105
