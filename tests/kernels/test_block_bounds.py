"""Maxima and bounds of blocks of logits: bounds lie above every score of their block, and not far above."""

from tests.kernels.device import DEVICE  # isort: skip

import math

import numpy as np
import pytest
import torch

from kernels import block_bounds
from kernels.block_bounds import BlockBounds, Blocks
from kernels.reference_random import gumbel_noise, hash_tokens, row_keys
from kernels.sampling_random import DEPTH_UNIT, MOST_NOISE_ABOVE
from tests.kernels.sampling_steps import make_records, make_step

LOWEST = torch.finfo(torch.float32).min
LINEAR_LOGARITHM = 0.0597
"""log(2) · 0.0861, by which a number's pattern is lower than its logarithm."""
ROUNDING = 2e-6


@pytest.fixture(autouse=True, params=[3, 4000])
def most_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a program, and one."""
    monkeypatch.setattr(block_bounds, "_MOST_PROGRAMS", request.param)


def by_block(values: torch.Tensor) -> list[torch.Tensor]:
    """The columns [N, tokens] of each block."""
    blocks = Blocks.of(values.shape[1])
    starts = [min(i * blocks.tokens, values.shape[1] - blocks.tokens) for i in range(blocks.count)]
    return [values[:, start : start + blocks.tokens] for start in starts]


def test_blocks_cover_the_vocabulary_and_programs_the_blocks() -> None:
    for vocab_size in (1, 2, 31, 1023, 1024, 1025, 2049, 128256, 151936):
        blocks = Blocks.of(vocab_size)
        assert blocks.tokens <= vocab_size <= blocks.count * blocks.tokens < vocab_size + blocks.tokens
        for num_rows in (1, 7, 256, 5000):
            programs, each = blocks.programs(num_rows)
            assert blocks.count <= programs * each < blocks.count + each


# numpy warns of a maximum of nothing but NaN.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("vocab_size", [1, 6, 1024, 3001])
def test_maxima(vocab_size: int) -> None:
    """What overflowed counts as a finite number; rows may lie apart, and those that do not sample are left alone."""
    logits = torch.randn(4, vocab_size + 5, device=DEVICE)[:, :vocab_size]
    logits[1, vocab_size // 2] = math.inf
    logits[1, : vocab_size // 2] = math.nan
    logits[2] = LOWEST
    step = make_step(make_records(4), samples=np.array([1, 1, 1, 0]))
    bounds = BlockBounds(logits, step, torch.zeros(4, device=DEVICE))
    bounds.maxima.fill_(math.nan)
    bounds.find_maxima(4)
    finite = torch.nan_to_num(logits, nan=-1e30, posinf=1e30, neginf=-1e30).clamp(min=-1e30).cpu()
    wanted = torch.stack([block.amax(1) for block in by_block(finite)], 1)
    assert torch.equal(bounds.maxima[:3].cpu(), wanted[:3])
    assert bounds.maxima[3].isnan().all()


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 1.0, 50.0])
def test_bounds_are_above_all_scores_and_near(temperature: float) -> None:
    """Beside a greedy row, of which there are maxima only."""
    vocab_size, drawn = 5000, [0, 1, 3]
    records = make_records(4, temperature=temperature, seed_low=np.arange(4) + 2**31, seed_high=5, sample_index=3)
    records["top_k"][2] = 1
    logits = torch.randn(4, vocab_size, device=DEVICE) * torch.tensor([[0.01], [1], [1], [9]], device=DEVICE)
    step = make_step(records, seq_lens=np.arange(4))
    bounds = BlockBounds(logits, step, torch.zeros(4, device=DEVICE))
    for tensor in (bounds.maxima, bounds.bounds):
        tensor.fill_(math.nan)
    bounds.find(4)
    assert torch.equal(bounds.maxima.cpu(), torch.stack([block.amax(1) for block in by_block(logits.cpu())], 1))
    assert bounds.bounds[2].isnan().all()

    keys = row_keys(records["seed_low"], records["seed_high"], records["sample_index"], np.arange(4))
    bits = hash_tokens(keys[:, None], torch.arange(vocab_size, dtype=torch.int32))
    scaled = logits.cpu().double() / float(np.float32(temperature))
    scores = scaled + gumbel_noise(bits).double()
    minus_log_u = -torch.log(((bits.long() & (2**32 - 1)) | 1).double() * 2.0**-32)
    upper = bounds.bounds.cpu().double() * DEPTH_UNIT.value + MOST_NOISE_ABOVE.value
    rounding = ROUNDING * (upper.abs() + MOST_NOISE_ABOVE.value)
    highest, nearest = (
        torch.stack([block.amax(1) for block in by_block(values)], 1) for values in (scores, scaled + minus_log_u)
    )
    assert (highest <= upper + rounding)[drawn].all()
    assert (upper <= nearest + LINEAR_LOGARITHM + 3e-4 + rounding)[drawn].all()


def test_blocks_below_a_threshold_are_not_read() -> None:
    """Their bound says so; tokens below it in other blocks do not count."""
    vocab_size = 4096
    logits = torch.full((2, vocab_size), -50.0, device=DEVICE)
    logits[:, 1500], logits[:, 3000] = 10.0, 9.0
    thresholds = torch.tensor([-2.0, -math.inf], device=DEVICE)
    step = make_step(make_records(2, temperature=0.7, seed_low=[3, 4]))
    bounds = BlockBounds(logits, step, thresholds)
    bounds.find_maxima(2)
    bounds.bounds.fill_(math.nan)
    logits[0, :1024] = logits[0, 3072:] = 1e9
    bounds.find_filtered(2)
    filtered = bounds.bounds.clone()
    assert (filtered[0, [0, 3]] == -1e38).all()
    assert (filtered[1] > -1e38).all()
    # What is left of row 0 is as if there were nothing but its two tokens.
    logits[0] = -1e9
    logits[0, 1500], logits[0, 3000] = 10.0, 9.0
    bounds.find(2)
    assert torch.equal(filtered[0, 1:3], bounds.bounds[0, 1:3])
    assert torch.equal(filtered[1], bounds.bounds[1])
