"""On a GPU: once a worker is ready, nothing is compiled, nothing is allocated and the launching thread never waits."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from torch.profiler import ProfilerActivity, profile

from engine_core.ipc.sampling_params import SamplingParams
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import RingRunner
from tests.gpu_workers.small_models import engine_config, save_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="streams, graphs and the JIT need a GPU")

WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaMalloc", "cudaFree", "cudaMemcpy", "cudaHostAlloc")
"""Runtime calls that stop the launching thread or the device; the publisher's cudaEventSynchronize is none."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    config = engine_config(path, device="cuda", dtype="bfloat16", max_num_batched_tokens=96, num_blocks=400)
    runner = RingRunner(config)
    yield Driver(config, runner)
    runner.close()


def requests_of_all_kinds(rng: random.Random) -> list[Request]:
    """Every feature of the sampler, masks, prompts in chunks, rows that decode beside them."""
    kinds: list[dict[str, Any]] = [
        {"allowed": list(range(50)), "sequences": SamplingParams(bad_words_token_ids=[[3], [5, 6]])},
        {"temperature": 0.8, "top_n_sigma": 1.5, "seed_low": 3},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "num_logprobs": 3},
        {"penalty_slot": 0, "repetition_penalty": 1.3, "presence_penalty": 0.1, "bias": {3: 2.0}},
        {"temperature": 1.0, "top_p": 0.5, "stops": [4, 5], "min_tokens": 3, "penalty_slot": 1},
        {"num_logprobs": 20, "prompt_logprobs": 3},
    ]
    requests = [
        Request([rng.randrange(1, 200) for _ in range(rng.randrange(1, 90))], rng.randrange(5, 20), row, kind)
        for row, kind in enumerate(kinds)
    ]
    requests[1].allowed = lambda output: [len(output) + 2, 199]
    return requests


def test_nothing_is_compiled_or_allocated(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **arguments: compiled.append(str(arguments["repr"]))
    )
    before = torch.cuda.memory_stats()["num_device_alloc"]
    for seed in range(3):
        driver.run(requests_of_all_kinds(random.Random(seed)))
    assert compiled == []
    assert torch.cuda.memory_stats()["num_device_alloc"] == before


def count_waits(driver: Driver, requests: list[Request]) -> tuple[Counter[str], int]:
    """Waiting calls of the runtime while `requests` run, and launched graphs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        driver.run(requests)
    names = Counter(event.name for event in profiler.events())
    return Counter({name: names[name] for name in WAITS}), names["cudaGraphLaunch"]


def test_the_launching_thread_never_waits(driver: Driver) -> None:
    own_waits, num_graphs = count_waits(driver, [])  # the profiler's, at its start and end
    assert num_graphs == 0
    waits, num_graphs = count_waits(driver, requests_of_all_kinds(random.Random(8)))
    assert num_graphs > 10
    assert waits == own_waits


def test_steps_follow_each_other_on_the_device(driver: Driver) -> None:
    """The times that a result carries are in order and lie within the time that passed on the host."""
    request = Request([1, 2, 3], 6, 0)
    times = []
    while len(request.output) < request.max_tokens:
        driver.step([request])
        times.append(tuple(int(driver.result.header[i]) for i in (2, 3)))
    driver.release(request)
    flat = [time for span in times for time in span]
    assert flat == sorted(flat)
    assert all(end > start for start, end in times)
