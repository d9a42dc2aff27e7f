"""The runners against transformers' generate in fp32: chunked prefill, mixed steps, fed back tokens, rows used again.

The GPU's runner takes part everywhere: natively where there is a GPU, else with its kernels in Triton's interpreter.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from engine_core.config.model_config import SUPPORTED_ARCHITECTURES
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.token_sequences import thinking_begin
from gpu_workers.models.registry import MODELS
from kernels import cpu
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import RingRunner
from tests.gpu_workers.small_models import SHAPE, VARIANTS, engine_config, save_model
from tests.kernels.device import DEVICE

pytestmark = [
    # In Triton's interpreter numpy warns of what padding computes from memory that nobody wrote.
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]
NEAR_TIE = 1e-4


class Device(NamedTuple):
    """Where a runner runs, and whether so slowly that tests do less of the same."""

    name: str
    is_interpreted: bool

    def driver(self, path: Path, **changes: Any) -> Driver:
        config = engine_config(path, device=self.name, **changes)
        return Driver(config, RingRunner(config) if self.name == "cuda" else None)


DEVICES = [Device("cpu", is_interpreted=False), Device("cuda", is_interpreted=DEVICE == "cpu")]


@pytest.fixture(
    scope="module", params=[DEVICES[0], pytest.param(DEVICES[1], marks=pytest.mark.slow)], ids=["cpu", "cuda"]
)
def device(request: pytest.FixtureRequest) -> Device:
    return request.param


def test_registry_matches_what_configs_may_name() -> None:
    assert tuple(MODELS) == SUPPORTED_ARCHITECTURES


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1, SHAPE["vocab_size"]) for _ in range(length)]


@torch.no_grad()
def assert_greedy(model: PreTrainedModel, request: Request) -> None:
    """Each token is the reference's most likely one; at a first divergence the two must be nearly equal."""
    ids = torch.tensor([request.prompt])
    wanted = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        min_new_tokens=request.max_tokens,
        do_sample=False,
    )[0, len(request.prompt) :].tolist()
    if request.output == wanted:
        return
    first = next(i for i, (a, b) in enumerate(zip(request.output, wanted, strict=True)) if a != b)
    logits = model(torch.tensor([request.prompt + wanted[:first]])).logits[0, -1]
    top = logits.topk(2).values
    assert float(top[0] - top[1]) < NEAR_TIE, f"token {first}: {request.output[first]} is not {wanted[first]}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(variant: str, device: Device, tmp_path: Path) -> None:
    """Prompts longer than the budget, short ones beside them, more requests than rows one after the other."""
    model = save_model(tmp_path, **VARIANTS[variant])
    driver = device.driver(tmp_path)
    rng = random.Random(variant)
    # The second lot takes rows and blocks of the first.
    lots, most = (
        (([1, 30, 3, 7], [2, 26]), 5) if device.is_interpreted else (([1, 70, 3, 25, 24, 7], [30, 2, 5, 90]), 25)
    )
    for lengths in lots:
        requests = [Request(random_prompt(rng, n), rng.randrange(3, most), row) for row, n in enumerate(lengths)]
        driver.run(requests)
        for request in requests:
            assert_greedy(model, request)


def test_the_last_layer_goes_on_with_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt the last token alone, of a step of single tokens all; what comes of it is compared above."""
    num_rows: list[int] = []
    gated = cpu.linear_act_and_mul

    def record(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        num_rows.append(len(x))
        return gated(x, *rest)

    monkeypatch.setattr(cpu, "linear_act_and_mul", record)
    save_model(tmp_path, num_hidden_layers=3)
    driver = DEVICES[0].driver(tmp_path)
    num_rows.clear()  # those of the warm-up
    driver.run([Request(random_prompt(random.Random(0), 20), 3, 0)])
    assert num_rows == [20, 20, 1, 1, 1, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, device: Device) -> tuple[PreTrainedModel, Driver]:
    path = tmp_path_factory.mktemp("model")
    return save_model(path, num_hidden_layers=1 if device.is_interpreted else 3), device.driver(path)


def run_one(driver: Driver, prompt: list[int], max_tokens: int, row: int = 0, **sampling: Any) -> Request:
    request = Request(prompt, max_tokens, row, sampling)
    driver.run([request])
    return request


def test_a_resumed_request_goes_on_as_if_nothing_had_happened(small: tuple[PreTrainedModel, Driver]) -> None:
    """Preemption by recompute: the prompt and the output so far are given again, in another row and other blocks."""
    _, driver = small
    sampling = {"temperature": 0.9, "seed_low": 5, "penalty_slot": 1, "frequency_penalty": 0.7, "presence_penalty": 0.4}
    prompt = random_prompt(random.Random(1), 40)
    whole = run_one(driver, prompt, 20, row=2, **sampling)
    first = run_one(driver, prompt, 9, row=3, **sampling)
    resumed = Request(prompt, 20, 4, {**sampling, "penalty_slot": 2}, output=list(first.output))
    driver.run([resumed])
    assert resumed.output == whole.output


def test_a_prefix_from_the_cache_is_not_computed_again(small: tuple[PreTrainedModel, Driver]) -> None:
    """A row may start with computed tokens: its first blocks are those that another row has filled."""
    model, driver = small
    prompt = random_prompt(random.Random(2), 30)
    owner = Request(prompt, 2, 0)
    driver.step([owner])
    driver.step([owner])
    sharer = Request(prompt[:16] + random_prompt(random.Random(3), 10), 8, 1, num_computed=16)
    sharer.blocks = owner.blocks[: 16 // driver.shape.block_size]
    driver.run([sharer])
    assert_greedy(model, sharer)


def test_a_seed_repeats_whatever_else_runs(small: tuple[PreTrainedModel, Driver]) -> None:
    _, driver = small
    rng = random.Random(4)
    sampling = {"temperature": 1.2, "top_p": 0.95, "top_k": 40, "seed_low": 77, "seed_high": 3}
    prompt = random_prompt(rng, 20)
    alone = run_one(driver, prompt, 15, **sampling)
    crowd = [
        Request(random_prompt(rng, 9 + i), 18, i, {"temperature": 0.3 * i, "seed_low": i, "top_k": i, "min_p": 0.05})
        for i in range(5)
    ]
    again = Request(prompt, 15, 5, sampling)
    driver.run([*crowd, again])
    assert again.output == alone.output
    assert run_one(driver, prompt, 15, **{**sampling, "seed_low": 78}).output != alone.output
    assert run_one(driver, prompt, 15, **{**sampling, "sample_index": 1}).output != alone.output


def test_min_tokens_hold_stops_back(small: tuple[PreTrainedModel, Driver]) -> None:
    _, driver = small
    prompt = random_prompt(random.Random(5), 10)
    free = run_one(driver, prompt, 6)
    stop = free.output[0]
    held = run_one(driver, prompt, 6, min_tokens=2, stops=[stop])
    assert stop not in held.output[:2]
    # As soon as enough tokens are there the stop may come: it is what the model wants after the same history.
    assert run_one(driver, prompt, 1, min_tokens=0, stops=[stop]).output == [stop]


def test_logit_bias_forces_and_forbids(small: tuple[PreTrainedModel, Driver]) -> None:
    _, driver = small
    prompt = random_prompt(random.Random(6), 10)
    assert run_one(driver, prompt, 4, bias={7: 100.0, 3: -100.0}).output == [7, 7, 7, 7]
    wanted = run_one(driver, prompt, 1).output[0]
    assert run_one(driver, prompt, 1, bias={wanted: -100.0, 10**6: 100.0}).output != [wanted]
    assert run_one(driver, prompt, 1).output == [wanted]  # the row's next owner has no bias


@torch.no_grad()
def test_logprobs_are_those_of_the_raw_logits(small: tuple[PreTrainedModel, Driver]) -> None:
    model, driver = small
    prompt = random_prompt(random.Random(7), 12)
    greedy = Request(prompt, 5, 0, {"num_logprobs": 4})
    drawn = Request(prompt, 5, 1, {"num_logprobs": 0, "temperature": 1.5, "seed_low": 9})
    penalized = Request(
        prompt, 5, 2, {"num_logprobs": 20, "penalty_slot": 0, "repetition_penalty": 1.8, "bias": {5: 3.0}}
    )
    plain = Request(prompt, 5, 3)
    driver.run([greedy, plain, drawn, penalized])
    assert greedy.output == plain.output
    for request in (greedy, drawn, penalized):
        wanted = model(torch.tensor([prompt + request.output])).logits[0].log_softmax(-1)
        for i, (token, got) in enumerate(zip(request.output, request.logprobs, strict=True)):
            row = wanted[len(prompt) - 1 + i]
            assert got["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
            assert got["rank"] == int((row > row[token] + 1e-5).sum()) + 1
            for other, value in got["tops"].items():
                assert value == pytest.approx(float(row[other]), abs=1e-4)
    assert all(got["logprob"] == max(got["tops"].values()) for got in greedy.logprobs)
    assert [len(got["tops"]) for got in penalized.logprobs] == [20] * 5


@torch.no_grad()
def test_prompts_are_scored_in_chunks(small: tuple[PreTrainedModel, Driver]) -> None:
    """Long and short ones beside each other and beside rows that want none; a slice is longer than a step here, so the
    slices of the CPU and the GPU are cut by `test_a_long_chunk_is_scored_in_slices`."""
    model, driver = small
    rng = random.Random(17)
    kinds = [{"prompt_logprobs": 3}, {}, {"prompt_logprobs": 0, "num_logprobs": 2}, {"prompt_logprobs": 20}]
    requests = [Request(random_prompt(rng, length), 3, row, kinds[row]) for row, length in enumerate((61, 5, 13, 1))]
    driver.run(requests)
    for request in requests:
        assert_greedy(model, request)
        if "prompt_logprobs" in request.sampling:
            assert_scored(model, request)


def assert_scored(model: PreTrainedModel, request: Request) -> None:
    """One entry for each token of the prompt but the first, as the reference has it."""
    wanted = model(torch.tensor([request.prompt])).logits[0].log_softmax(-1)
    assert len(request.prompt_logprobs) == len(request.prompt) - 1
    for row, token, got in zip(wanted, request.prompt[1:], request.prompt_logprobs, strict=False):
        assert got["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert int((row > row[token] + 1e-5).sum()) < got["rank"] <= int((row > row[token] - 1e-5).sum())
        assert len(got["tops"]) == request.sampling["prompt_logprobs"]
        for other, value in got["tops"].items():
            assert value == pytest.approx(float(row[other]), abs=1e-4)
        if got["rank"] == 1 and got["tops"]:
            assert got["logprob"] == max(got["tops"].values())


@torch.no_grad()
def test_a_long_chunk_is_scored_in_slices(device: Device, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    driver = device.driver(tmp_path, max_num_batched_tokens=96, num_blocks=60)
    assert driver.config.scheduler.max_scored_rows == 64
    request = Request(random_prompt(random.Random(18), 90), 2, 0, {"prompt_logprobs": 2})
    driver.run([request])
    assert_greedy(model, request)
    assert_scored(model, request)


@torch.no_grad()
def test_masks_follow_the_output(small: tuple[PreTrainedModel, Driver]) -> None:
    """Each token is the most likely of those that the row's lists leave; the same after the row was started again with
    the tokens so far."""
    model, driver = small
    rng = random.Random(20)
    prompt = random_prompt(rng, 9)
    plain = run_one(driver, prompt, 12).output
    bad_words = [plain[:1], plain[2:4], [*plain[4:7], plain[7]], [prompt[-1], plain[0]]]
    kinds: list[dict[str, Any]] = [
        {"allowed": [3, 7, 200, 5, 9, 11]},
        {"sequences": SamplingParams(bad_words_token_ids=bad_words)},
        {"sequences": SamplingParams(thinking_token_budget=4, thinking_end_token_ids=[8, 9, 10])},
        {
            "allowed": sorted({*plain, *range(60)}),
            "sequences": SamplingParams(
                thinking_token_budget=2,
                thinking_start_token_ids=plain[1:3],
                thinking_end_token_ids=[205],
            ),
        },
    ]
    requests = [Request(prompt, 12, row, kind) for row, kind in enumerate(kinds)]
    driver.run(requests)
    for request in requests:
        again = Request(prompt, 12, request.row, request.sampling, output=request.output[:5])
        driver.run([again])
        assert again.output == request.output
        logits = model(torch.tensor([prompt + request.output])).logits[0]
        for i, token in enumerate(request.output):
            allowed = possible(request.sampling, request.output[:i])
            row = logits[len(prompt) - 1 + i]
            assert token in allowed, (request.sampling, i)
            assert float(row[sorted(allowed)].max() - row[token]) < NEAR_TIE
    assert requests[2].output[4:7] == [8, 9, 10]
    assert requests[3].output[3:6].count(205) == 1
    assert requests[1].output != plain


def possible(sampling: dict[str, Any], output: list[int]) -> set[int]:
    """The tokens that may come next, looked up in the whole output."""
    allowed = set(sampling.get("allowed", range(SHAPE["vocab_size"])))
    params = sampling.get("sequences")
    if params is None:
        return allowed
    for word in params.bad_words_token_ids:
        if output[len(output) - len(word) + 1 :] == word[:-1] and len(output) >= len(word) - 1:
            allowed.discard(word[-1])
    begin = thinking_begin(output, params.thinking_start_token_ids, params.thinking_end_token_ids)
    if params.thinking_token_budget is not None and 0 <= begin <= len(output) - params.thinking_token_budget:
        end = params.thinking_end_token_ids
        return {end[(len(output) - params.thinking_token_budget - begin) % len(end)]}
    return allowed


@torch.no_grad()
def test_penalties_follow_prompt_and_output(small: tuple[PreTrainedModel, Driver]) -> None:
    model, driver = small
    prompt = random_prompt(random.Random(8), 15)
    request = run_one(
        driver, prompt, 12, penalty_slot=2, repetition_penalty=1.5, presence_penalty=0.8, frequency_penalty=0.6
    )
    logits = model(torch.tensor([prompt + request.output])).logits[0].double()
    for i, token in enumerate(request.output):
        row, output = logits[len(prompt) - 1 + i], request.output[:i]
        for seen in {*prompt, *output}:
            row[seen] = row[seen] / 1.5 if row[seen] > 0 else row[seen] * 1.5
        for seen in set(output):
            row[seen] -= 0.8 + 0.6 * output.count(seen)
        assert float(row.max() - row[token]) < NEAR_TIE


def test_a_step_without_samples_or_with_other_kinds_of_rows(small: tuple[PreTrainedModel, Driver]) -> None:
    """The first chunks of a long prompt alone sample nothing; top_k 1 is greedy at any temperature."""
    model, driver = small
    prompt = random_prompt(random.Random(9), 60)
    request = Request(prompt, 3, 0, {"temperature": 2.0, "top_k": 1, "seed_low": 1})
    driver.step([request])
    assert request.output == []
    driver.run([request])
    assert_greedy(model, request)


def test_dummy_weights_repeat(device: Device, tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    outputs = []
    for seed in (3, 3, 4):
        request = Request([1, 2, 3], 8, 0)
        device.driver(tmp_path, load_format="dummy", seed=seed).run([request])
        outputs.append(request.output)
    assert outputs[0] == outputs[1]
