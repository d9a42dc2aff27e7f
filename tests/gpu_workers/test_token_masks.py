"""Both runners under masks: rows that have one keep to it whatever else is asked of them, the others do not notice."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import RingRunner
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
    {"bias": {1: 100.0}, "num_logprobs": 3},
    {"penalty_slot": 0, "repetition_penalty": 1.5},
]


@pytest.fixture(scope="module", params=["cpu", "cuda"])
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


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_token_is_an_allowed_one(driver: Driver, kind: int) -> None:
    rng = random.Random(kind)
    free, bound, also_free = (
        Request([rng.randrange(1, VOCAB_SIZE) for _ in range(length)], 5, row, dict(KINDS[kind] if row == 1 else {}))
        for row, length in enumerate((9, 20, 3))
    )
    alone = Request(list(free.prompt), 5, 3)
    driver.run([alone])
    bound.allowed = allowed_after
    driver.run([free, bound, also_free])
    for index, token in enumerate(bound.output):
        assert token in allowed_after(bound.output[:index])
    assert free.output == alone.output
