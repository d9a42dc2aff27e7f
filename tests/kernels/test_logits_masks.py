"""What rules tokens out, on rows among others: both devices' operations against plain versions."""

from tests.kernels.device import DEVICE  # isort: skip

import math
import random

import numpy as np
import pytest
import torch

from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS, SamplingParams
from engine_core.token_sequences import sequence_words, thinking_begin
from kernels.logits_masks import follow_sequences, keep_allowed
from kernels.sampling_fields import LOWEST
from tests.kernels.row_sequences import RowSequences
from tests.kernels.sampling_steps import make_records, make_step, row_tensors

K, L = 6, MAX_SEQUENCE_TOKENS


@pytest.mark.parametrize("vocab_size", [5, 300, 9001])
def test_allowed(vocab_size: int) -> None:
    torch.manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size + 3, device=DEVICE)[:, :vocab_size]
    logits[0, 1], logits[0, 2] = math.inf, math.nan
    lists = [[1, 2, vocab_size - 1, vocab_size, 2**31 - 1], [], [0, 0, 3], [1]]
    step = make_step(make_records(4, allowed_length=[len(ids) for ids in lists]), samples=np.array([1, 1, 1, 0]))
    allowed = torch.full((len(step.fields), 7), 4, dtype=torch.int32, device=DEVICE)
    for row, ids in zip(step.rows.tolist(), lists, strict=True):
        allowed[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    wanted = logits.clone()
    for i in (0, 2):
        ids = sorted({token for token in lists[i] if token < vocab_size})
        wanted[i] = LOWEST.value
        wanted[i, ids] = torch.nan_to_num(logits[i, ids], -1e30, 1e30, -1e30)
    keep_allowed(logits, step, row_tensors(allowed_ids=allowed))
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sequences_over_an_output(seed: int) -> None:
    """Outputs of few different tokens, so that sequences match often, step by step; rows begin in their middle."""
    rng = random.Random(seed)
    vocab_size, num_rows = 9, 5

    def some(longest: int) -> list[int]:
        return [rng.randrange(3) for _ in range(rng.randint(1, longest))]

    params = [
        SamplingParams(bad_words_token_ids=[some(3) for _ in range(4)]),
        SamplingParams(bad_words_token_ids=[[vocab_size, 1], [1] * L, [2**31 - 1]]),
        SamplingParams(thinking_token_budget=3, thinking_end_token_ids=some(3)),
        SamplingParams(thinking_token_budget=1, thinking_start_token_ids=some(2), thinking_end_token_ids=some(2)),
        SamplingParams(
            thinking_token_budget=0,
            thinking_start_token_ids=[1],
            thinking_end_token_ids=[2, 2],
            bad_words_token_ids=[[0]],
        ),
    ]
    prompts = [[rng.randrange(3) for _ in range(rng.randint(1, 20))] for _ in params]
    outputs = [[rng.randrange(3) for _ in range(rng.randint(0, 20))] for _ in params]
    records = make_records(num_rows)
    sequences = torch.full((2 * num_rows + 3, K, L), 1, dtype=torch.int32, device=DEVICE)
    latest = torch.full((2 * num_rows + 3, L), 1, dtype=torch.int32, device=DEVICE)
    begin = torch.full((2 * num_rows + 3,), 7, dtype=torch.int32, device=DEVICE)
    last_token = torch.full((2 * num_rows + 3,), 1, dtype=torch.int32, device=DEVICE)
    rows = make_step(records).rows.tolist()
    tensors = row_tensors(sequences=sequences, latest_tokens=latest, thinking_begin=begin, last_token=last_token)
    twins = []
    for i, (sampling, prompt, output) in enumerate(zip(params, prompts, outputs, strict=True)):
        words = sequence_words(sampling, np.array(prompt + output, np.int32), len(prompt))
        records["num_prompt_tokens"][i], records["num_output_tokens"][i] = len(prompt), len(output)
        records["num_sequences"][i] = len(words) // L - 1
        records["thinking_budget"][i] = -1 if sampling.thinking_token_budget is None else sampling.thinking_token_budget
        records["thinking_begin"][i] = thinking_begin(
            output, sampling.thinking_start_token_ids, sampling.thinking_end_token_ids
        )
        twins.append(RowSequences(records[i], words))
        lines = torch.from_numpy(words.reshape(-1, L).copy())
        sequences[rows[i], : len(lines) - 1], latest[rows[i]] = lines[:-1].to(DEVICE), lines[-1].to(DEVICE)
        begin[rows[i]] = int(records["thinking_begin"][i])
    for _ in range(12):
        logits = torch.randn(num_rows, vocab_size, device=DEVICE)
        wanted = logits.clone()
        for i, twin in enumerate(twins):
            wanted[i, [token for token in twin.ruled_out() if token < vocab_size]] = LOWEST.value
            if (forced := twin.forced()) is not None:
                wanted[i] = LOWEST.value
                wanted[i, forced] = 0.0
        lengths = np.array([len(p) + len(o) for p, o in zip(prompts, outputs, strict=True)])
        follow_sequences(logits, make_step(records, lengths), tensors)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=0)
        for i, twin in enumerate(twins):
            forced = twin.forced()
            token = rng.randrange(3) if forced is None else forced
            outputs[i].append(token)
            twin.sampled(token)
            last_token[rows[i]] = token


def test_rows_that_sample_nothing_are_left_alone() -> None:
    records = make_records(2, num_sequences=[3, 0], thinking_budget=0, allowed_length=[1, 0])
    step = make_step(records, samples=np.array([0, 1]))
    logits = torch.randn(2, 40, device=DEVICE)
    before = logits.clone()
    shapes = {"sequences": (K, L), "latest_tokens": (L,), "thinking_begin": (), "last_token": (), "allowed_ids": (4,)}
    rows = row_tensors(
        **{
            name: torch.zeros(len(step.fields), *shape, dtype=torch.int32, device=DEVICE)
            for name, shape in shapes.items()
        }
    )
    follow_sequences(logits, step, rows)
    keep_allowed(logits, step, rows)
    assert torch.equal(logits, before)
