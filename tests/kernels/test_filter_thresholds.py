"""Filter thresholds against the reference: the same tokens are kept."""

from tests.kernels.device import DEVICE  # isort: skip

import numpy as np
import pytest
import torch

from kernels import block_bounds, reference_sampling
from kernels.block_bounds import BlockBounds
from kernels.filter_bins import MAX_CANDIDATES
from kernels.filter_thresholds import FilterThresholds
from tests.kernels.sampling_steps import make_records, make_step

MASS_TOLERANCE = 2e-5
"""Share of a row's mass by which two nuclei may differ: float32 sums of a few thousand terms in different orders."""


@pytest.fixture(autouse=True)
def most_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some steps have several blocks a program, small ones one."""
    monkeypatch.setattr(block_bounds, "_MOST_PROGRAMS", 7)


def scaled_logits(logits: torch.Tensor, records: np.ndarray) -> torch.Tensor:
    temperature = torch.from_numpy(records["temperature"].copy())[:, None]
    return (logits.cpu() - logits.cpu().amax(1, keepdim=True)) / temperature


def kernel_thresholds(
    logits: torch.Tensor, records: np.ndarray, samples: np.ndarray | None = None, num_steps: int = 1
) -> torch.Tensor:
    step = make_step(records, samples=samples)
    thresholds = torch.full((len(step),), torch.nan, device=DEVICE)
    bounds = BlockBounds(logits, step, thresholds)
    bounds.maxima.fill_(torch.nan)
    filters = FilterThresholds(logits, step, bounds.maxima, thresholds)
    bounds.find_maxima(len(step))
    for _ in range(num_steps):
        filters.find(len(step))
    return thresholds.cpu()[:, None]


def assert_keeps_the_same(logits: torch.Tensor, records: np.ndarray) -> torch.Tensor:
    """What both keep, bool [N, V]. Where the sums are so near that rounding decides, one more or one less value is
    allowed, if it weighs next to nothing."""
    scaled = scaled_logits(logits, records)
    top_k, top_p, min_p = (torch.from_numpy(records[name].copy()) for name in ("top_k", "top_p", "min_p"))
    wanted = scaled >= reference_sampling.filter_thresholds(scaled, top_k, top_p, min_p)
    got = scaled >= kernel_thresholds(logits, records)
    for i in (got != wanted).any(1).nonzero().flatten().tolist():
        differing = scaled[i][got[i] != wanted[i]]
        assert top_p[i] < 1, i
        # The mass before the boundary is what decides, so it is that which has to be the wanted share all but exactly.
        left = scaled[i] >= reference_sampling.filter_thresholds(
            scaled[i : i + 1], top_k[i : i + 1], torch.ones(1), min_p[i : i + 1]
        )
        mass = torch.where(left.flatten(), torch.exp(scaled[i].double()), 0.0)
        for value in differing.unique().tolist():
            above = float(mass[scaled[i] > value].sum() / mass.sum())
            upto = float(mass[scaled[i] >= value].sum() / mass.sum())
            assert min(abs(above - float(top_p[i])), abs(upto - float(top_p[i]))) < MASS_TOLERANCE, (i, value)
    return got


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [2, 9])
@pytest.mark.parametrize("vocab_size", [1, 6, 1024, 3001])
def test_keeps_what_the_reference_keeps(num_rows: int, vocab_size: int) -> None:
    """Logits on a grid, with many ties, and others; all filters alone and together, beside rows that have none."""
    generator = np.random.default_rng(100 * num_rows + vocab_size)
    torch.manual_seed(vocab_size)
    records = make_records(
        num_rows,
        temperature=generator.choice([0.25, 1.0, 1.7], num_rows),
        top_k=generator.choice([0, 2, 7, 50, vocab_size, 2**31 - 1], num_rows),
        top_p=generator.choice([1.0, 0.9137, 0.5071, 0.0613], num_rows),
        min_p=generator.choice([0.0, 0.0517, 0.3219, 1.0], num_rows),
    )
    logits = torch.randn(num_rows, vocab_size, device=DEVICE) * 3
    logits[::2] = (logits[::2] * 2).round() / 2
    assert_keeps_the_same(logits, records)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 100.0])
def test_top_k_at_any_temperature(temperature: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 5000, device=DEVICE) * 4
    kept = assert_keeps_the_same(logits, make_records(3, temperature=temperature, top_k=[2, 20, 300]))
    if temperature < 100:  # which makes some logits equal
        assert kept.sum(1).tolist() == [2, 20, 300]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.01, 1.0, 12.0])
def test_nuclei_narrow_and_wide(spread: float) -> None:
    """A flat row's nucleus does not fit among the candidates, so the row is searched as a whole."""
    torch.manual_seed(2)
    logits = torch.randn(3, 9000, device=DEVICE) * spread
    records = make_records(3, temperature=1.0, top_p=[0.1, 0.95, 0.9999], top_k=[0, 0, 8000])
    kept = assert_keeps_the_same(logits, records).sum(1)
    if spread == 0.01:
        assert kept[1] > MAX_CANDIDATES.value


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1e-3, 0.02, 0.5])
def test_the_end_of_a_flat_nucleus_is_among_the_candidates(spread: float) -> None:
    """The search finds the threshold although the logits are gone: it does not read the row as a whole."""
    torch.manual_seed(5)
    logits = torch.randn(4, 30000, device=DEVICE) * spread
    records = make_records(4, temperature=[1.0, 0.7, 1.0, 3.0], top_p=[0.9, 0.5, 0.99, 0.3], min_p=[0, 0, 0.001, 0])
    step, thresholds = make_step(records), torch.full((4,), torch.nan, device=DEVICE)
    bounds = BlockBounds(logits, step, thresholds)
    filters = FilterThresholds(logits, step, bounds.maxima, thresholds)
    bounds.find_maxima(4)
    search, original = filters._search, logits.clone()

    def search_without_logits(num_programs_x: int, num_programs_y: int) -> None:
        logits.fill_(torch.nan)
        search(num_programs_x, num_programs_y)

    filters._search = search_without_logits
    filters.find(4)
    kept = scaled_logits(original, records) >= thresholds.cpu()[:, None]
    assert (kept.sum(1) > MAX_CANDIDATES.value).all()
    logits.copy_(original)
    assert torch.equal(kept, assert_keeps_the_same(logits, records))


@pytest.mark.slow
def test_ties_across_the_candidates_last_bin() -> None:
    """Rows of few values: all of a value are kept or none, however many they are."""
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.choice([0.0, -1.0, -1.25, -6.0, -40.0], (6, 6000))).float().to(DEVICE)
    records = make_records(6, temperature=1.0, top_k=[1201, 5, 0, 0, 3000, 5999], top_p=[1, 1, 0.3131, 0.9731, 0.6, 1])
    assert_keeps_the_same(logits, records)


def test_an_extreme_share_keeps_the_most_likely_or_all() -> None:
    logits = torch.randn(3, 700, device=DEVICE)
    records = make_records(3, temperature=1.0, top_p=[1e-30, np.nextafter(np.float32(1), np.float32(0)), 0.5])
    records["min_p"][2] = 1.0
    thresholds = kernel_thresholds(logits, records)
    assert (scaled_logits(logits, records) >= thresholds).sum(1).tolist()[::2] == [1, 1]
    assert_keeps_the_same(logits[1:2], records[1:2])


def test_rows_without_filters_and_rows_that_do_not_sample() -> None:
    records = make_records(4, temperature=[1.0, 1.0, 0.0, 1.0], top_k=[0, 3, 3, 2**31 - 1])
    samples = np.array([1, 0, 1, 1])
    thresholds = kernel_thresholds(torch.randn(4, 90, device=DEVICE), records, samples).flatten()
    assert thresholds[0] == thresholds[2] == thresholds[3] == -torch.inf
    assert torch.isnan(thresholds[1])


@pytest.mark.slow
def test_the_result_does_not_depend_on_neighbours() -> None:
    """Alone, with a program for each block; among others, with several blocks a program: exactly the same threshold."""
    torch.manual_seed(4)
    logits = torch.randn(10, 5000, device=DEVICE)
    records = make_records(10, temperature=0.8, top_k=[0, 40] * 5, top_p=0.9)
    together = kernel_thresholds(logits, records)
    for i in (0, 1):
        alone = kernel_thresholds(logits[i : i + 1], records[i : i + 1])
        scaled = scaled_logits(logits[i : i + 1], records[i : i + 1])
        assert torch.equal(scaled >= alone, scaled >= together[i])


@pytest.mark.slow
def test_steps_leave_nothing_behind() -> None:
    """Twice the same step, and a row that is searched as a whole."""
    records = make_records(4, temperature=1.0, top_k=[0, 9, 0, 0], top_p=[0.9, 0.5, 1.0, 0.999])
    logits = torch.randn(4, 4500, device=DEVICE) * torch.tensor([[3.0], [1.0], [1.0], [0.001]], device=DEVICE)
    assert torch.equal(kernel_thresholds(logits, records), kernel_thresholds(logits, records, num_steps=3))
