"""Both runners under masks: rows that have one keep to it whatever else is asked of them, the others do not notice."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_core.ipc.sampling_params import SamplingParams
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import ON_BOTH_DEVICES, RingRunner
from tests.gpu_workers.small_models import SHAPE, engine_config, save_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]
VOCAB_SIZE = SHAPE["vocab_size"]
KINDS = [
    {},
    {"temperature": 0.9, "seed_low": 5},
    {"temperature": 0.9, "top_k": 3, "top_p": 0.5, "min_p": 0.2},
    {"temperature": 0.9, "top_n_sigma": 1.0, "num_logprobs": 3},
    {"bias": {1: 100.0}, "num_logprobs": 3},
    {"penalty_slot": 0, "repetition_penalty": 1.5},
    {"sequences": SamplingParams(bad_words_token_ids=[[4, 5]], thinking_token_budget=2, thinking_end_token_ids=[6, 7])},
]


@pytest.fixture(scope="module", params=ON_BOTH_DEVICES)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    path: Path = tmp_path_factory.mktemp("model")
    save_model(path)
    config = engine_config(path, device=request.param)
    runner = RingRunner(config) if request.param == "cuda" else None
    yield Driver(config, runner)
    if runner is not None:
        runner.close()


def allowed_after(output: list[int]) -> list[int]:
    """Two tokens, others after each output, the last of the vocabulary among them."""
    return [(7 * len(output) + 3) % VOCAB_SIZE, VOCAB_SIZE - 1 - len(output) % 2]


def everything_but(output: list[int]) -> list[int]:
    """One token is ruled out, another one after each output."""
    return [token for token in range(VOCAB_SIZE) if token != 11 + len(output)]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_token_is_an_allowed_one(driver: Driver, kind: int) -> None:
    rng = random.Random(kind)
    free, bound, also_free = (
        Request([rng.randrange(1, VOCAB_SIZE) for _ in range(length)], 5, row, dict(KINDS[kind] if row == 1 else {}))
        for row, length in enumerate((9, 20, 3))
    )
    alone = Request(list(free.prompt), 5, 3)
    driver.run([alone])
    bound.allowed = allowed = everything_but if "sequences" in KINDS[kind] else allowed_after
    driver.run([free, bound, also_free])
    for index, token in enumerate(bound.output):
        assert token in allowed(bound.output[:index])
    assert free.output == alone.output


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_late_mask_changes_no_token(driver: Driver, kind: int) -> None:
    """A row is skipped before its first token, once and twice in a row, and says nothing; the others go on."""
    outputs, logprobs, num_steps = [], [], []
    for late in ((), (0, 1, 3, 6, 7)):
        rng = random.Random(kind)
        free, bound, other = (
            Request(
                [rng.randrange(1, VOCAB_SIZE) for _ in range(length)], 6, row, dict(KINDS[kind] if row == 1 else {})
            )
            for row, length in enumerate((9, 20, 3))
        )
        bound.allowed = everything_but if "sequences" in KINDS[kind] else allowed_after
        bound.is_late = late.__contains__
        other.allowed = allowed_after
        before = driver.num_steps
        driver.run([free, bound, other])
        num_steps.append(driver.num_steps - before)
        assert bound.num_attempts == 6 + len(late)
        assert other.num_attempts == 6
        outputs.append([free.output, bound.output, other.output])
        logprobs.append([entry["rank"] for entry in bound.logprobs])
    assert outputs[1] == outputs[0]
    assert logprobs[1] == logprobs[0]
    assert num_steps[1] == num_steps[0] + 5


def test_a_step_may_skip_all_its_rows(driver: Driver) -> None:
    prompts, outputs = ([1, 2, 3], [4, 5]), []
    for late in ((), (0, 2)):
        requests = [Request(list(prompt), 3, row) for row, prompt in enumerate(prompts)]
        for request in requests:
            request.allowed, request.is_late = allowed_after, late.__contains__
        driver.run(requests)
        outputs.append([request.output for request in requests])
    assert outputs[1] == outputs[0]
