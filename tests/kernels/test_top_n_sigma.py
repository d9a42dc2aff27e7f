"""Top-nσ against the reference and the paper's formula."""

from tests.kernels.device import DEVICE  # isort: skip

import math

import numpy as np
import pytest
import torch

from kernels import reference_sampling
from kernels.sampling_fields import LARGEST, LOWEST
from kernels.top_n_sigma import keep_top_n_sigma
from tests.kernels.sampling_steps import make_records, make_step, row_tensors

SIGMAS = [0.0, 0.5, 1.0, 2.0, 3.5]
N = len(SIGMAS)


def ruled_out(logits: torch.Tensor) -> torch.Tensor:
    """Reference and kernel rule out with different numbers; NaN cannot be drawn either."""
    return ~(logits > -LARGEST.value)


def by_the_formula(row: list[float], num_sigmas: float) -> list[float]:
    left = [x for x in row if x > -1e30]
    mean = math.fsum(left) / len(left)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in left) / len(left))
    return [x if num_sigmas == 0 or x >= max(left) - num_sigmas * sigma else -math.inf for x in row]


def check(logits: torch.Tensor, **fields: object) -> torch.Tensor:
    """Runs the kernel on drawn rows with SIGMAS, and the reference; returns what the kernel left, on the CPU."""
    step = make_step(make_records(len(logits), **{"temperature": 0.7, "top_n_sigma": SIGMAS, **fields}))
    expected = reference_sampling.make_finite(logits.cpu().clone())
    keep_top_n_sigma(logits, step, row_tensors())
    reference_sampling.keep_top_n_sigma(expected, torch.tensor(SIGMAS))
    found = logits.cpu()
    assert torch.equal(ruled_out(found), ruled_out(expected))
    kept = ~ruled_out(found)
    assert torch.equal(reference_sampling.make_finite(found.clone())[kept], expected[kept])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [1, 2, 50, 4096, 4099, 9001])
def test_what_is_kept(vocab_size: int) -> None:
    """Also where the logits lie far from 0, and where rows lie apart."""
    torch.manual_seed(vocab_size)
    logits = torch.randn(N, vocab_size + 3, device=DEVICE)[:, :vocab_size]
    logits[:, vocab_size // 2] += 4.0
    logits[3] += 300.0
    before = logits.cpu().double().tolist()
    found = check(logits)
    for row, (found_row, num_sigmas) in enumerate(zip(found, SIGMAS, strict=True)):
        expected = torch.tensor(by_the_formula(before[row], num_sigmas))
        assert torch.equal(ruled_out(found_row), expected == -math.inf)
    assert not ruled_out(found[0]).any()
    if vocab_size >= 50:
        assert 1 <= int((~ruled_out(found[2])).sum()) < int((~ruled_out(found[4])).sum()) <= vocab_size


def test_what_was_ruled_out_does_not_count() -> None:
    """A grammar's masks, stops that are held back, and a model's own -inf and NaN."""
    torch.manual_seed(1)
    alone = torch.randn(N, 6000, device=DEVICE)
    logits = torch.full((N, 12000), LOWEST.value, device=DEVICE)
    logits[:, ::3] = -math.inf
    logits[:, 4::9] = math.nan
    places = torch.randperm(12000, device=DEVICE)[:6000]
    logits[:, places] = alone
    found, found_alone = check(logits), check(alone)
    assert torch.equal(ruled_out(found[:, places.cpu()]), ruled_out(found_alone))


def test_rows_without_a_spread() -> None:
    """One token left, equal logits, a logit so large that there is no other beside it, no token left."""
    logits = torch.full((N, 5000), LOWEST.value, device=DEVICE)
    logits[1, 17] = -3.0
    logits[2] = 1.75
    logits[3].normal_()
    logits[3, 8] = math.inf
    left = ~ruled_out(logits.cpu())
    left[3] = torch.arange(5000) == 8
    assert torch.equal(~ruled_out(check(logits)), left)


def test_temperature_changes_nothing() -> None:
    torch.manual_seed(2)
    logits = torch.randn(N, 700, device=DEVICE)
    hot = logits.clone()
    assert torch.equal(check(logits, temperature=0.1), check(hot, temperature=50.0))


def test_other_rows_are_left_alone() -> None:
    """Those that are greedy, that ask for nothing, that sample nothing."""
    logits = torch.randn(4, 90, device=DEVICE)
    records = make_records(4, temperature=[0.0, 1.0, 1.0, 1.0], top_k=[0, 1, 0, 0], top_n_sigma=[1.0, 1.0, 0.0, 1.0])
    before = logits.clone()
    keep_top_n_sigma(logits, make_step(records, samples=np.array([1, 1, 1, 0])), row_tensors())
    assert torch.equal(logits, before)
