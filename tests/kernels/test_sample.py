"""Chosen tokens against the references: same keys, same tokens."""

from tests.kernels.device import DEVICE  # isort: skip

import math

import numpy as np
import pytest
import torch

from kernels import block_bounds, reference_sampling
from kernels.reference_random import gumbel_noise, hash_tokens, row_keys
from kernels.sample import TokenSampler
from kernels.step_tensors import SampledRows
from tests.kernels.sampling_steps import make_records, make_step

UNTOUCHED = -77


@pytest.fixture(autouse=True)
def most_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some steps have several blocks a program, small ones one."""
    monkeypatch.setattr(block_bounds, "_MOST_PROGRAMS", 7)


class Outputs:
    """The outputs of a step, poisoned."""

    def __init__(self, step: SampledRows, vocab_size: int, output_counts: torch.Tensor | None = None) -> None:
        self.last_token = torch.full((len(step.fields),), UNTOUCHED, dtype=torch.int32, device=DEVICE)
        self.sampled = torch.full((len(step) + 2,), UNTOUCHED, dtype=torch.int32, device=DEVICE)
        self.num_sampled = torch.full((len(step) + 2,), UNTOUCHED, dtype=torch.int32, device=DEVICE)
        if output_counts is None:
            output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=DEVICE)
        self.output_counts = output_counts

    def sample(self, logits: torch.Tensor, step: SampledRows, any_drawn: bool, any_filtered: bool) -> list[int]:
        """The tokens of all rows; logits stay, and what a step before left behind does not matter."""
        before = logits.clone()
        sampler = TokenSampler(logits, step, self.last_token, self.output_counts)
        for tensor in (sampler._bounds.maxima, sampler._bounds.bounds, sampler._thresholds):
            tensor.fill_(math.nan)
        sampler.sample(len(step), self.sampled, self.num_sampled, any_drawn, any_filtered)
        assert torch.equal(logits.view(torch.int32), before.view(torch.int32))
        return self.sampled[: len(step)].tolist()


def wanted_tokens(logits: torch.Tensor, records: np.ndarray, seq_lens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids [N], scores [N, V] of which they are the largest) by the references."""
    logits = reference_sampling.make_finite(logits.clone().cpu())
    top_k, top_p, min_p = (torch.from_numpy(records[name].copy()) for name in ("top_k", "top_p", "min_p"))
    drawn = torch.from_numpy((records["temperature"] > 0) & (records["top_k"] != 1))
    temperature = torch.from_numpy(np.where(drawn, records["temperature"], np.float32(1)))
    scaled = (logits - logits.amax(1, keepdim=True)) / temperature[:, None]
    thresholds = reference_sampling.filter_thresholds(scaled, top_k, top_p, min_p)
    keys = row_keys(records["seed_low"], records["seed_high"], records["sample_index"], seq_lens)
    noise = gumbel_noise(hash_tokens(keys[:, None], torch.arange(logits.shape[1], dtype=torch.int32)))
    scores = torch.where(drawn[:, None], (scaled + noise).masked_fill_(scaled < thresholds, -math.inf), logits)
    tokens = torch.where(
        drawn,
        reference_sampling.sample_gumbel(scaled, thresholds, keys),
        reference_sampling.greedy(logits),
    )
    return tokens, scores


def assert_chosen(got: list[int], logits: torch.Tensor, records: np.ndarray, seq_lens: np.ndarray) -> None:
    """The reference's tokens; another one only where its score is the same but for the last bits of the logarithms."""
    tokens, scores = wanted_tokens(logits, records, seq_lens)
    for i in range(len(got)):
        if got[i] != int(tokens[i]):
            assert float(scores[i, got[i]]) == pytest.approx(float(scores[i, tokens[i]]), rel=4e-7, abs=4e-7), i


@pytest.mark.parametrize("num_rows", [1, 3, 11])
@pytest.mark.parametrize("vocab_size", [1, 5, 1024, 2500, 9001])
def test_greedy(num_rows: int, vocab_size: int) -> None:
    """The lowest id among equals, within and across blocks; rows may lie apart."""
    torch.manual_seed(num_rows * vocab_size)
    logits = torch.randn(num_rows, vocab_size + 3, device=DEVICE).mul_(2).round_()[:, :vocab_size]
    step = make_step(make_records(num_rows))
    outputs = Outputs(step, logits.shape[1])
    # On a GPU torch.argmax takes any of equals.
    assert outputs.sample(logits, step, False, False) == reference_sampling.greedy(logits.cpu()).tolist()
    assert outputs.num_sampled.tolist() == [1] * num_rows + [UNTOUCHED] * 2
    assert outputs.sampled[num_rows:].tolist() == [UNTOUCHED] * 2
    wanted = torch.full_like(outputs.last_token, UNTOUCHED)
    wanted[step.rows.long()] = outputs.sampled[:num_rows]
    assert torch.equal(outputs.last_token, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [2, 9])
@pytest.mark.parametrize("vocab_size", [7, 1025, 5000])
def test_draws_are_the_references(num_rows: int, vocab_size: int) -> None:
    """Mixed rows: greedy ones, top_k 1, cool and hot ones, with and without filters, seeds of all 64 bits."""
    generator = np.random.default_rng(vocab_size + num_rows)
    torch.manual_seed(vocab_size)
    records = make_records(
        num_rows,
        temperature=generator.choice([0.0, 0.3, 1.0, 100.0], num_rows),
        top_k=generator.choice([0, 1, 4, 2**31 - 1], num_rows),
        top_p=generator.choice([0.5, 0.93, 1.0], num_rows),
        min_p=generator.choice([0.0, 0.05], num_rows),
        seed_low=generator.integers(0, 2**32, num_rows),
        seed_high=generator.integers(0, 2**32, num_rows),
        sample_index=generator.integers(0, 2**16, num_rows),
    )
    seq_lens = generator.integers(1, 2**17, num_rows)
    logits = torch.randn(num_rows, vocab_size, device=DEVICE) * 3
    step = make_step(records, seq_lens)
    assert_chosen(Outputs(step, logits.shape[1]).sample(logits, step, True, True), logits, records, seq_lens)


@pytest.mark.slow
def test_winners_that_bounds_do_not_name() -> None:
    """Two or three equally likely tokens in different blocks: u is anywhere between 0 and 1, so the block with the
    highest bound often has not the winner."""
    num_rows, vocab_size = 48, 3500
    logits = torch.full((num_rows, vocab_size), -30.0, device=DEVICE)
    for token in (20, 1400, 3490):
        logits[: None if token < 3000 else num_rows // 2, token] = 5.0
    records = make_records(num_rows, temperature=1.0, seed_low=np.arange(num_rows) + 100)
    step = make_step(records)
    got = Outputs(step, vocab_size).sample(logits, step, True, False)
    assert_chosen(got, logits, records, np.full(num_rows, 7))
    assert set(got) == {20, 1400, 3490}


def test_draws_without_filters() -> None:
    """Twelve rows, of which some ask for a filter that the host is told nothing of, and so is not applied."""
    records = make_records(12, temperature=1.0, seed_low=np.arange(12), top_p=[1.0, 0.1] * 6)
    logits = torch.randn(12, 4097, device=DEVICE)
    step = make_step(records)
    got = Outputs(step, logits.shape[1]).sample(logits, step, True, False)
    records["top_p"] = 1.0
    assert_chosen(got, logits, records, np.full(12, 7))


def test_rows_that_do_not_sample_are_left_alone() -> None:
    """Padding among them: row 0 and an empty sequence."""
    records = make_records(4, temperature=[0, 1, 0, 1], top_k=3)
    step = make_step(records, samples=np.array([0, 1, 1, 0]))
    step.rows[0] = 0
    logits = torch.randn(4, 100, device=DEVICE)
    outputs = Outputs(step, logits.shape[1])
    got = outputs.sample(logits, step, True, True)
    assert outputs.num_sampled.tolist() == [0, 1, 1, 0, UNTOUCHED, UNTOUCHED]
    assert got[0] == got[3] == UNTOUCHED
    assert got[2] == int(logits[2].argmax())
    assert int((outputs.last_token != UNTOUCHED).sum()) == 2


def test_counts_of_penalized_rows_grow() -> None:
    records = make_records(3, penalty_slot=[2, -1, 0])
    step = make_step(records)
    counts = torch.arange(4 * 50, dtype=torch.int32, device=DEVICE).reshape(4, 50)
    wanted = counts.clone()
    logits = torch.randn(3, 50, device=DEVICE)
    got = Outputs(step, 50, counts).sample(logits, step, False, False)
    wanted[2, got[0]] += 1
    wanted[0, got[2]] += 1
    assert torch.equal(counts, wanted)


# The scaled logits of a temperature of 1e-30 overflow to -inf, as they do in the reference, and differences of bounds
# that overflowed have no value; numpy warns of a maximum of nothing but NaN as well.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0])
def test_what_overflowed(temperature: float) -> None:
    logits = torch.randn(5, 2000, device=DEVICE)
    logits[0, 1500] = math.inf
    logits[1, :1999] = math.nan
    logits[2] = -math.inf
    logits[3, ::2] = math.nan
    logits[3, 1::2] = -math.inf
    logits[4, 3] = 1e33  # a finite number, if one that no model means
    records = make_records(5, temperature=temperature, top_p=0.9, seed_low=5)
    step = make_step(records)
    got = Outputs(step, logits.shape[1]).sample(logits, step, temperature > 0, temperature > 0)
    assert_chosen(got, logits, records, np.full(5, 7))
    assert got[0] == 1500
    assert got[1] == 1999


def test_a_minute_temperature_takes_the_most_likely() -> None:
    logits = torch.randn(3, 3000, device=DEVICE)
    step = make_step(make_records(3, temperature=1e-6))
    assert Outputs(step, logits.shape[1]).sample(logits, step, True, False) == logits.argmax(1).tolist()


@pytest.mark.slow
def test_draws_follow_the_probabilities() -> None:
    """Chi-square of many positions of one request; the bound is passed by chance in 999 of 1000 cases."""
    n = 4000 if DEVICE == "cuda" else 250  # the interpreter takes 20 ms for a row's key
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    records = make_records(n, temperature=0.5, seed_low=11, seed_high=3)
    step = make_step(records, seq_lens=np.arange(n))
    logits = (probabilities.log() * 0.5).expand(n, -1).contiguous().to(DEVICE)
    drawn = torch.tensor(Outputs(step, logits.shape[1]).sample(logits, step, True, False))
    counts = torch.bincount(drawn, minlength=4)
    assert float(((counts - n * probabilities) ** 2 / (n * probabilities)).sum()) < 16.3  # 3 degrees of freedom
