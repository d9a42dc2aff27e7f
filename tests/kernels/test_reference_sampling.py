"""The sampler's operations against naive code on lists of floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_sampling
from kernels.reference_sampling import (
    apply_penalties,
    filter_thresholds,
    greedy,
    make_finite,
    sample_gumbel,
    token_logprobs,
)


def naive_support(logits: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Token ids that survive min-p, then top-k, then top-p; equal logits live and die together."""
    alive = {i: math.exp(x - max(logits)) for i, x in enumerate(logits)}
    alive = {i: p for i, p in alive.items() if p >= min_p}
    if 0 < top_k < len(logits):
        kth = sorted((logits[i] for i in range(len(logits))), reverse=True)[top_k - 1]
        alive = {i: p for i, p in alive.items() if logits[i] >= kth}
    if top_p < 1:
        wanted, total = top_p * sum(alive.values()), 0.0
        for value in sorted(alive.values(), reverse=True):
            if total >= wanted:
                break
            total, last = total + value, value
        alive = {i: p for i, p in alive.items() if p >= last}
    return set(alive)


@settings(max_examples=150)
@given(data=st.data())
def test_filters_keep_the_naive_support(data: st.DataObject) -> None:
    """Logits on a coarse grid have many ties; top_p off that grid keeps rounding out of the verdict."""
    vocab_size = data.draw(st.integers(2, 12))
    num_rows = data.draw(st.integers(1, 4))
    logits = [[data.draw(st.integers(-8, 8)) / 2 for _ in range(vocab_size)] for _ in range(num_rows)]
    top_k = [data.draw(st.sampled_from([0, 1, 2, 3, 7, 100])) for _ in range(num_rows)]
    top_p = [data.draw(st.sampled_from([1.0, 0.9137, 0.5071, 0.0613])) for _ in range(num_rows)]
    min_p = [data.draw(st.sampled_from([0.0, 0.0517, 0.3219, 1.0])) for _ in range(num_rows)]
    x = torch.tensor(logits)
    threshold = filter_thresholds(x, torch.tensor(top_k, dtype=torch.int32), torch.tensor(top_p), torch.tensor(min_p))
    for i in range(num_rows):
        kept = set((x[i] >= threshold[i]).nonzero().flatten().tolist())
        assert kept == naive_support(logits[i], top_k[i], top_p[i], min_p[i])


def test_top_p_beyond_the_first_candidates() -> None:
    """A flat distribution's nucleus is wider than the values that top-p looks at first, also where a token was ruled
    out; a steep one's is not."""
    torch.manual_seed(0)
    vocab_size = 6 * reference_sampling._NUM_TOP_P_CANDIDATES
    logits = torch.stack([torch.randn(vocab_size) * scale for scale in (0.1, 6.0, 0.1)])
    logits[2, 3] = -torch.inf
    threshold = filter_thresholds(logits, torch.zeros(3, dtype=torch.int32), torch.full((3,), 0.9), torch.zeros(3))
    for row in range(3):
        kept = set((logits[row] >= threshold[row]).nonzero().flatten().tolist())
        assert kept == naive_support(logits[row].double().tolist(), 0, float(torch.tensor(0.9)), 0.0)
        assert (len(kept) > reference_sampling._NUM_TOP_P_CANDIDATES) == (row != 1)


@pytest.mark.parametrize("dense_share", [0, 10**9], ids=["sparse", "dense"])
def test_draws_follow_the_probabilities(dense_share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of 40,000 draws under different keys, fixed; the bound is passed by chance in 999 of 1000 cases."""
    monkeypatch.setattr(reference_sampling, "_DENSE_SHARE", dense_share)
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    n = 40_000
    generator = torch.Generator().manual_seed(3)
    keys = torch.randint(-(2**31), 2**31, (n, 2), generator=generator, dtype=torch.int32)
    logits = probabilities.log().expand(n, -1)
    drawn = sample_gumbel(logits, torch.full((n, 1), -torch.inf), keys)
    counts = torch.bincount(drawn, minlength=8)
    chi_square = float(((counts - n * probabilities) ** 2 / (n * probabilities)).sum())
    assert chi_square < 24.3  # 7 degrees of freedom


def test_both_ways_to_draw_agree_and_ignore_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    logits, keys = torch.randn(9, 500) * 8, torch.randint(-(2**31), 2**31, (9, 2), dtype=torch.int32)
    threshold = torch.where(torch.arange(9)[:, None] % 2 == 0, -torch.inf, logits.amax(1, keepdim=True) - 3)
    monkeypatch.setattr(reference_sampling, "_DENSE_SHARE", 0)
    sparse = sample_gumbel(logits, threshold, keys)
    alone = [int(sample_gumbel(logits[i : i + 1], threshold[i : i + 1], keys[i : i + 1])) for i in range(9)]
    monkeypatch.setattr(reference_sampling, "_DENSE_SHARE", 10**9)
    assert sparse.tolist() == alone == sample_gumbel(logits, threshold, keys).tolist()


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert greedy(torch.tensor([[0.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("vocab_size", [1, 7, 50])
def test_penalties(vocab_size: int) -> None:
    torch.manual_seed(5)
    logits = torch.randn(3, vocab_size) * 3
    prompt = torch.rand(3, vocab_size) < 0.3
    counts = torch.randint(0, 4, (3, vocab_size), dtype=torch.int32) * (torch.rand(3, vocab_size) < 0.4)
    repetition, presence, frequency = torch.tensor([1.0, 1.3, 0.7]), torch.tensor([0.5, 0, -1]), torch.rand(3)
    got = logits.clone()
    apply_penalties(got, prompt, counts.int(), repetition, presence, frequency)
    for i in range(3):
        for token in range(vocab_size):
            x, count = float(logits[i, token]), int(counts[i, token])
            if prompt[i, token] or count:
                x = x / float(repetition[i]) if x > 0 else x * float(repetition[i])
            x -= float(frequency[i]) * count + float(presence[i]) * (count > 0)
            assert float(got[i, token]) == pytest.approx(x, rel=1e-5, abs=1e-5)


def test_logprobs_ranks_and_tops() -> None:
    torch.manual_seed(6)
    logits = torch.randn(4, 30)
    token_ids = torch.tensor([0, 3, int(logits[2].argmax()), 29])
    sampled, ranks, top_ids, tops = token_logprobs(logits, token_ids, 5)
    wanted = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(sampled.double(), wanted.gather(1, token_ids[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    order = wanted.argsort(-1, descending=True)
    assert ranks.tolist() == [int((order[i] == token_ids[i]).nonzero()) + 1 for i in range(4)]
    assert torch.equal(top_ids, order[:, :5])
    torch.testing.assert_close(tops.double(), wanted.gather(1, order[:, :5]), rtol=1e-5, atol=1e-6)
    assert ranks[2] == 1
    assert sampled[2] == tops[2, 0]  # exactly
    assert token_logprobs(logits, token_ids, 0)[3].shape == (4, 0)


def test_what_overflowed_becomes_finite() -> None:
    logits = torch.tensor([[0.0, math.nan, math.inf], [1.0, -math.inf, 2.0]])
    assert greedy(make_finite(logits)).tolist() == [2, 2]
    assert torch.isfinite(token_logprobs(logits, torch.tensor([2, 2]), 2)[0]).all()
