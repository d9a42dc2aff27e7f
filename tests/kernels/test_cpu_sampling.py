"""The sampler's operations on a CPU against the kernels of the same names, which are tested against the references."""

from tests.kernels.device import DEVICE  # isort: skip

import numpy as np
import pytest
import torch

from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS, NEEDS
from kernels import cpu, cuda
from kernels.sampling_fields import LOWEST
from kernels.step_tensors import Processor, SampledRows
from tests.kernels.sampling_steps import make_records, make_step, row_tensors

N, V, L = 6, 300, MAX_SEQUENCE_TOKENS
SAMPLES = np.array([1, 1, 0, 1, 1, 1])


@pytest.fixture
def generator() -> np.random.Generator:
    torch.manual_seed(0)
    return np.random.default_rng(0)


def integers(generator: np.random.Generator, below: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator.integers(0, below, shape).astype(np.int32))


def on_device(step: SampledRows, device: str) -> SampledRows:
    tensors = (tensor.to(device) for tensor in (step.rows, step.samples, step.seq_lens, step.fields))
    return SampledRows(*tensors, step.columns)


def run(need: str, step: SampledRows, **tensors: torch.Tensor) -> None:
    """Both operations on copies; what they change is the same afterwards, to the last bits of a product."""
    logits = torch.randn(N, V + 3)[:, :V]
    made: list[list[torch.Tensor]] = []
    for module, device in ((cuda, DEVICE), (cpu, "cpu")):
        processors: dict[str, Processor] = module.PROCESSORS
        changed, copies = logits.clone().to(device), {name: one.clone().to(device) for name, one in tensors.items()}
        processors[need](changed, on_device(step, device), row_tensors(**copies))
        made.append([changed.cpu(), *(copy.cpu() for copy in copies.values())])
    for kernel, other in zip(*made, strict=True):
        torch.testing.assert_close(other, kernel, rtol=2e-6, atol=2e-6)
    assert not torch.equal(made[0][0], logits)


def test_both_know_all_needs() -> None:
    """What changes logits has an operation on both devices, under a name of the schema."""
    assert cpu.PROCESSORS.keys() == cuda.PROCESSORS.keys() == NEEDS.keys() - {"random", "filters", "logprobs"}


def test_bias(generator: np.random.Generator) -> None:
    step = make_step(make_records(N, bias_length=[3, 0, 2, 8, 1, 5]), samples=SAMPLES)
    ids = torch.stack([torch.randperm(V + 20, dtype=torch.int32)[:8] for _ in step.fields])
    run("bias", step, bias_ids=ids, bias_values=torch.randn(len(step.fields), 8))


def test_stops(generator: np.random.Generator) -> None:
    records = make_records(N, num_prompt_tokens=10, min_tokens=[3, 3, 3, 0, 9, 1], stop_length=[2, 2, 1, 3, 4, 0])
    step = make_step(records, np.array([12, 13, 10, 10, 18, 10]), SAMPLES)
    run("held_back", step, stop_ids=integers(generator, V + 20, len(step.fields), 4))


def test_penalties(generator: np.random.Generator) -> None:
    records = make_records(
        N,
        penalty_slot=[2, -1, 0, 3, 1, -1],
        repetition_penalty=generator.uniform(0.5, 2, N),
        presence_penalty=generator.uniform(-2, 2, N),
        frequency_penalty=generator.uniform(-2, 2, N),
    )
    mask, counts = integers(generator, 2, 4, V).to(torch.uint8), integers(generator, 3, 4, V)
    run("penalties", make_step(records, samples=SAMPLES), prompt_mask=mask, output_counts=counts)


def test_allowed(generator: np.random.Generator) -> None:
    step = make_step(make_records(N, allowed_length=[5, 0, 3, 1, 7, 2]), samples=SAMPLES)
    run("allowed", step, allowed_ids=integers(generator, V + 20, len(step.fields), 7))


def test_top_n_sigma(generator: np.random.Generator) -> None:
    """-inf and the lowest number are told apart by nobody who draws."""
    records = make_records(N, temperature=[0.7, 0.0, 1.0, 2.0, 1.0, 0.9], top_n_sigma=[1.0, 1.0, 1.0, 0.5, 0.0, 2.0])
    logits, made = torch.randn(N, V), []
    for module, device in ((cuda, DEVICE), (cpu, "cpu")):
        changed = logits.clone().to(device)
        module.PROCESSORS["top_n_sigma"](changed, on_device(make_step(records, samples=SAMPLES), device), row_tensors())
        made.append(changed.cpu().clamp(min=LOWEST.value))
    assert torch.equal(*made)
    assert (made[0] == LOWEST.value).any(dim=1).tolist() == [True, False, False, True, False, True]


@pytest.mark.parametrize("seq_len", range(6, 30))
def test_sequences(generator: np.random.Generator, seq_len: int) -> None:
    """Outputs of two different tokens, so that sequences match often."""
    records = make_records(
        N,
        num_prompt_tokens=[0, 5, 3, 6, 2, 4],
        num_output_tokens=[0, 1, 2, 0, 4, 2],
        num_sequences=[6, 3, 5, 2, 6, 0],
        thinking_budget=[-1, 0, 2, 1, 5, 0],
    )
    step = make_step(records, np.full(N, seq_len), SAMPLES)
    num_rows = len(step.fields)
    sequences = integers(np.random.default_rng(seq_len), 2, num_rows, 6, L)
    lengths = generator.integers(1, 4, (num_rows, 6, 1))
    sequences[torch.from_numpy(np.arange(L) >= lengths)] = -1
    latest, begin = integers(generator, 2, num_rows, L), integers(generator, 12, num_rows) - 2
    state = {"latest_tokens": latest, "thinking_begin": begin.clamp(max=5)}
    run("sequences", step, sequences=sequences, **state, last_token=integers(generator, 2, num_rows))


def test_masks(generator: np.random.Generator) -> None:
    """A row that a mask leaves no token has -inf on a CPU and the lowest numbers on a GPU, so the order is compared."""
    logits, words = torch.randn(N, V), integers(generator, 2**31, 3, -(-V // 32))
    rows = torch.tensor([4, 0, 5], dtype=torch.int32)
    kernel = logits.clone().to(DEVICE)
    cuda.apply_token_masks(kernel, rows.to(DEVICE), words.to(DEVICE))
    cpu.apply_token_masks(logits, rows, words)
    assert torch.equal(logits.argsort(stable=True)[:, -50:], kernel.cpu().argsort(stable=True)[:, -50:])


@pytest.mark.parametrize(("any_drawn", "any_filtered"), [(False, False), (True, False), (True, True)])
def test_tokens(generator: np.random.Generator, any_drawn: bool, any_filtered: bool) -> None:
    records = make_records(
        N,
        temperature=[0.0, 0.7, 1.0, 2.0, 0.0, 0.9] if any_drawn else 0.0,
        top_k=[0, 1, 4, 9, 3, 0] if any_filtered else 0,
        top_p=[1.0, 0.5, 0.9, 0.8, 1.0, 0.7] if any_filtered else 1.0,
        min_p=[0.0, 0.0, 0.1, 0.0, 0.2, 0.05] if any_filtered else 0.0,
        seed_low=generator.integers(0, 2**32, N),
        seed_high=generator.integers(0, 2**32, N),
        sample_index=generator.integers(0, 2**16, N),
        penalty_slot=[-1, 0, 2, 1, -1, 3],
    )
    step, logits = make_step(records, generator.integers(1, 2**17, N), SAMPLES), torch.randn(N, V) * 3
    made = []
    for module, device in ((cuda, DEVICE), (cpu, "cpu")):
        last, counts = (
            torch.zeros(*shape, dtype=torch.int32, device=device) for shape in ((len(step.fields),), (4, V))
        )
        sampled, num_sampled = (torch.zeros(N, dtype=torch.int32, device=device) for _ in range(2))
        sampler = module.TokenSampler(logits.clone().to(device), on_device(step, device), last, counts)
        sampler.sample(N, sampled, num_sampled, any_drawn, any_filtered)
        made.append([tensor.tolist() for tensor in (sampled, num_sampled, last, counts)])
    assert made[0] == made[1]
    assert made[1][1] == SAMPLES.tolist()
