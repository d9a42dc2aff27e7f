"""What changes logits, against the references and plain indexing."""

from tests.kernels.device import DEVICE  # isort: skip

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kernels import reference_sampling
from kernels.logits_processors import add_logit_bias, apply_penalties, hold_back_stops
from kernels.sampling_fields import LOWEST
from kernels.step_tensors import RowTensors, SampledRows
from tests.kernels.sampling_steps import make_records, make_step, row_tensors

N, P, MB, MS = 5, 4, 8, 4


def filled(step: SampledRows, width: int, lists: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """[S, width] with each scheduled row's list at its front and garbage elsewhere."""
    out = torch.full((len(step.fields), width), 123, dtype=dtype, device=DEVICE)
    for row, values in zip(step.rows.tolist(), lists, strict=True):
        out[row, : len(values)] = torch.tensor(values, dtype=dtype)
    return out


def biases(step: SampledRows, ids: list[list[int]], values: list[list[float]]) -> RowTensors:
    return row_tensors(bias_ids=filled(step, MB, ids, torch.int32), bias_values=filled(step, MB, values, torch.float32))


def pool(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    prompt_mask = (torch.rand(P, vocab_size) < 0.3).to(torch.uint8)
    counts = torch.randint(0, 4, (P, vocab_size)) * (torch.rand(P, vocab_size) < 0.4)
    return prompt_mask.to(DEVICE), counts.int().to(DEVICE)


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_bias() -> None:
    """Ids beyond the vocabulary are ignored; a logit that overflowed is biased as a finite one."""
    logits = torch.randn(N, 51, device=DEVICE)[:, :50]
    logits[0, 3], logits[0, 4] = math.nan, math.inf
    logits[1, 5] = math.nan  # not biased: left to whoever reads it
    ids = [[3, 4, 49], [0, 50, 2**31 - 1], [], [7, 8, 9, 10, 11, 12, 13, 14], [1]]
    values = [[2.0, -100.0, 1.5], [0.25, 9.0, 9.0], [], [float(i) for i in range(8)], [5.0]]
    step = make_step(make_records(N, bias_length=[3, 3, 0, 8, 1]), samples=np.array([1, 1, 1, 1, 0]))
    wanted = logits.clone()
    for i in range(4):
        for token, value in zip(ids[i], values[i], strict=True):
            if token < 50:
                wanted[i, token] = torch.nan_to_num(wanted[i, token], -1e30, 1e30, -1e30) + value
    add_logit_bias(logits, step, biases(step, ids, values))
    same(logits, wanted)


def test_stops_are_held_back() -> None:
    """Until min_tokens are there: the row's length less its prompt."""
    logits = torch.randn(N, 30, device=DEVICE)
    records = make_records(N, num_prompt_tokens=10, min_tokens=[3, 3, 0, 3, 3], stop_length=[2, 2, 1, 3, 1])
    step = make_step(records, seq_lens=np.array([12, 13, 10, 10, 10]), samples=np.array([1, 1, 1, 1, 0]))
    wanted = logits.clone()
    wanted[0, [4, 29]] = wanted[3, 2] = LOWEST.value
    stops = filled(step, MS, [[4, 29], [4, 29], [1], [2, 30, 2**31 - 1], [5]], torch.int32)
    hold_back_stops(logits, step, row_tensors(stop_ids=stops))
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("vocab_size", [1, 50, 4099])
def test_penalties(vocab_size: int) -> None:
    torch.manual_seed(vocab_size)
    logits = torch.randn(N, vocab_size + 2, device=DEVICE)[:, :vocab_size] * 3
    logits[0, vocab_size // 2] = math.inf
    slots = [2, -1, 0, 3, 1]
    records = make_records(
        N,
        penalty_slot=slots,
        repetition_penalty=[1.0, 2.0, 1.3, 0.7, 1.1],
        presence_penalty=[0.5, 2.0, 0.0, -1.0, 1.0],
        frequency_penalty=[0.1, 1.0, 1.5, 0.0, -2.0],
    )
    step = make_step(records, samples=np.array([1, 1, 1, 1, 0]))
    prompt_mask, counts = pool(vocab_size)
    before = prompt_mask.clone(), counts.clone()
    wanted = logits.clone()
    for i in (0, 2, 3):
        row = reference_sampling.make_finite(wanted[i : i + 1].clone())
        parameters = (
            torch.tensor([records[name][i]], device=DEVICE)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        reference_sampling.apply_penalties(row, prompt_mask[slots[i], None].bool(), counts[slots[i], None], *parameters)
        wanted[i] = row
    apply_penalties(logits, step, row_tensors(prompt_mask=prompt_mask, output_counts=counts))
    same(logits, wanted)
    assert torch.equal(prompt_mask, before[0])
    assert torch.equal(counts, before[1])


def test_all_of_them_in_the_cpu_samplers_order() -> None:
    """Bias, then stops, then penalties there; here a held-back token comes out as the lowest number instead of -inf."""
    torch.manual_seed(9)
    vocab_size = 300
    logits = torch.randn(N, vocab_size, device=DEVICE)
    records = make_records(
        N,
        bias_length=2,
        stop_length=1,
        min_tokens=9,
        penalty_slot=[0, 1, 2, 3, -1],
        repetition_penalty=1.5,
        frequency_penalty=0.5,
    )
    step = make_step(records)
    ids, values, stops = [[1, 299]] * N, [[1.0, -2.0]] * N, [[1]] * N
    prompt_mask, counts = pool(vocab_size)
    wanted = logits.clone()
    wanted[:, 1] = -math.inf
    wanted[:, 299] -= 2.0
    penalized = wanted[:4].clone()
    reference_sampling.apply_penalties(
        penalized,
        prompt_mask.bool(),
        counts,
        *(torch.tensor([value] * 4, device=DEVICE) for value in (1.5, 0.0, 0.5)),
    )
    wanted[:4] = penalized
    add_logit_bias(logits, step, biases(step, ids, values))
    apply_penalties(logits, step, row_tensors(prompt_mask=prompt_mask, output_counts=counts))
    hold_back_stops(logits, step, row_tensors(stop_ids=filled(step, MS, stops, torch.int32)))
    same(logits, wanted.clamp_(min=LOWEST.value))
