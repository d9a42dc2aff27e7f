"""Which operations a step runs, and in which order: those that some of its rows need and no others."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine_core.ipc.sampling_params import FILTERS, LOGPROBS, NEEDS, OF_DRAWN_ROWS, RANDOM
from engine_core.ipc.step import StepShape, result_layout
from gpu_workers.running.rows import Rows
from gpu_workers.running.sampler import Sampler
from kernels import cpu
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import ON_BOTH_DEVICES, RingRunner
from tests.gpu_workers.small_models import engine_config, save_model

SHAPE = StepShape(max_num_seqs=4, max_num_batched_tokens=8, max_model_len=16, block_size=4, num_mask_words=2)
VOCAB = 40
CHANGING = [name for name in NEEDS if name in cpu.PROCESSORS]


@pytest.fixture
def ran() -> list[str]:
    """The operations in the order in which they ran."""
    return []


@pytest.fixture
def sampler(ran: list[str]) -> Sampler:
    def noting(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            ran.append(name)
            return operation(*arguments)

        return run

    operations: Any = SimpleNamespace(
        PROCESSORS={name: noting(name, operation) for name, operation in cpu.PROCESSORS.items()},
        apply_token_masks=noting("masks", cpu.apply_token_masks),
        token_logprobs=noting("logprobs", cpu.token_logprobs),
        TokenSampler=cpu.TokenSampler,
        StepPreparation=cpu.StepPreparation,
    )
    rows = Rows(SHAPE, VOCAB, 2, operations, torch.device("cpu"))
    sampler = Sampler(rows, SHAPE, operations, torch.randn(4, VOCAB), torch.zeros(4, VOCAB))
    sampler.open([torch.zeros(result_layout(SHAPE).num_bytes // 4, dtype=torch.int32)])
    return sampler


@pytest.mark.parametrize("name", CHANGING)
def test_what_rows_need_runs_alone(sampler: Sampler, ran: list[str], name: str) -> None:
    sampler.sample(3, RANDOM | FILTERS | NEEDS[name], 0)
    assert ran == [name]


def test_without_needs_nothing_runs(sampler: Sampler, ran: list[str]) -> None:
    for needs in (0, RANDOM, RANDOM | FILTERS):
        sampler.sample(3, needs, 0)
    assert ran == []


def test_grammars_masks_come_behind_all_but_what_is_for_drawn_rows(sampler: Sampler, ran: list[str]) -> None:
    masks = torch.zeros(1, dtype=torch.int32), torch.full((1, 2), -1, dtype=torch.int32)
    sampler.sample(3, sum(NEEDS.values()), 0, masks)
    of_drawn_rows = [name for name in CHANGING if NEEDS[name] & OF_DRAWN_ROWS]
    others = [name for name in CHANGING if name not in of_drawn_rows]
    assert ran == [*others, "masks", *of_drawn_rows, "logprobs"]
    sampler.sample(3, LOGPROBS, 0)
    assert ran[len(CHANGING) + 2 :] == ["logprobs"]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of padding, in Triton's interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("device", ON_BOTH_DEVICES)
def test_a_narrow_top_n_sigma_draws_greedy_tokens(device: str, tmp_path: Path) -> None:
    """Rows of one batch, at a temperature that makes all tokens about as likely."""
    save_model(tmp_path)
    config = engine_config(tmp_path, device=device)
    runner = RingRunner(config) if device == "cuda" else None
    hot = {"temperature": 100.0, "seed_low": 5}
    kinds: list[dict[str, Any]] = [{}, {**hot, "top_n_sigma": 1e-4}, hot]
    greedy, narrow, wide = requests = [Request([7, 8, 9], 6, row, kind) for row, kind in enumerate(kinds)]
    Driver(config, runner).run(requests)
    if runner is not None:
        runner.close()
    assert narrow.output == greedy.output != wide.output
