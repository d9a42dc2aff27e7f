"""What the scheduler decides, in figures: memory that is reserved and not used, preemptions under too much load, and
what a long prompt's hashing adds to a step. No model is run (see scheduler_load.py)."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from benchmarks.scheduler_load import SchedulerLoad
from engine_core import garbage
from engine_core.config.engine_config import PolicyName
from engine_core.request import Request


def random_prompt(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, 30000, length, np.int32)


def measure_waste(block_size: int = 16) -> dict[str, float]:
    """256 requests always running, prompt and output together 512 tokens on average when they end."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=256 * 64, block_size=block_size)
    reserved, used, num_requests = 0, 0, 0
    while load.now < 30.0:
        while load.scheduler.num_waiting < 16:
            load.add(random_prompt(rng, int(rng.integers(64, 449))), max_tokens=int(rng.integers(64, 449)))
        load.step()
        reserved += load.num_reserved_slots
        used += load.num_used_slots
        num_requests += load.scheduler.num_running
    return {
        "share_of_reserved": (reserved - used) / reserved,
        "blocks_per_request": (reserved - used) / block_size / num_requests,
    }


def measure_thrash(policy: PolicyName, num_requests: int = 1024, num_blocks: int = 4096) -> dict[str, float]:
    """All at once, and the cache holds about a quarter of what 256 of them grow to."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks, scheduling_policy=policy)
    requests: list[Request] = []
    for number in range(num_requests):
        length, max_tokens = int(rng.integers(16, 1025)), int(rng.integers(16, 1025))
        requests.append(
            load.add(random_prompt(rng, length), max_tokens, share_key=str(number % 8), priority=number % 3)
        )
    num_steps, owned, num_needed = 0, 0, sum(request.limit - 1 for request in requests)
    while load.scheduler.has_unfinished:
        load.step()
        num_steps += 1
        owned += load.scheduler.kv.pool.num_owned
    hits = load.scheduler.kv.num_hit_tokens
    return {
        "steps": num_steps,
        "preemptions": load.scheduler.num_preemptions,
        "most_of_one_request": max(request.num_preemptions for request in requests),
        "computed_again": (load.num_computed_tokens - num_needed) / num_needed,
        "found_again": hits / num_needed,
        "blocks_in_use": owned / num_steps / num_blocks,
    }


def measure_long_prompts(length: int = 131_072, num_decoding: int = 32) -> dict[str, float]:
    """CPU time of the scheduler while requests decode and a long prompt arrives, with idle time for it and without."""
    rng = np.random.default_rng(0)
    figures = {}
    for name, has_idle_time in (("with_idle_time", True), ("without", False)):
        load = SchedulerLoad(num_blocks=2 * length // 16, max_model_len=length + 1024, max_num_batched_tokens=2048)
        for _ in range(num_decoding):
            load.add(random_prompt(rng, 16), max_tokens=1000)
        for _ in range(50):
            load.step()
        usual = []
        for _ in range(50):
            load.collect()
            usual.append(_seconds(load.schedule))
        request = load.add(random_prompt(rng, length), max_tokens=8)
        ahead, steps = [], []
        while request.scheduled_time is None:
            if has_idle_time:
                ahead.append(_seconds(load.scheduler.hash_ahead))
            load.collect()
            steps.append(_seconds(load.schedule))
        figures[f"{name}_usual_ms"] = float(np.median(usual)) * 1e3
        figures[f"{name}_longest_ms"] = max(steps) * 1e3
        figures[f"{name}_median_ms"] = float(np.median(steps)) * 1e3
        figures[f"{name}_longest_ahead_ms"] = max(ahead, default=0.0) * 1e3
        figures[f"{name}_steps_until_it_starts"] = len(steps)
    return figures


def _seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    garbage.hold()  # as a core does
    report = {
        "waste": measure_waste(),
        **{f"thrash, {policy}": measure_thrash(policy) for policy in get_args(PolicyName)},
        "a prompt of 131,072 tokens": measure_long_prompts(),
    }
    rounded = {name: {key: round(value, 4) for key, value in part.items()} for name, part in report.items()}
    print(json.dumps(rounded, indent=1))


if __name__ == "__main__":
    main()
