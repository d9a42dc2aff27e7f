"""The prefix cache with a million cached blocks: does its size show in what an operation costs, and what is a block?

Fills a cache with prompts of which groups share a beginning, then goes on with new prompts, each of which evicts as
many blocks as it takes; at last asks for what `quire top` shows and for a page of what a router gets. No model and no
sockets: `KVCacheManager` and `Inspector` alone.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import numpy as np
import psutil

from engine_core.config.engine_config import SchedulerConfig
from engine_core.inspector import Inspector, block_page
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_BLOCKS = 128
SHARED_BLOCKS = 32
PROMPTS_A_GROUP = 16
NUM_MEASURED = 400


class Prompts:
    """Requests one after the other; those of a group begin alike."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._number = 0

    def next(self) -> Request:
        if self._number % PROMPTS_A_GROUP == 0:
            self._beginning = self._tokens(SHARED_BLOCKS)
        self._number += 1
        return Request(
            request_id=str(self._number),
            client=b"",
            handle=0,
            prompt_token_ids=np.concatenate([self._beginning, self._tokens(PROMPT_BLOCKS - SHARED_BLOCKS)]),
            sampling=SamplingParams(max_tokens=1),
            max_total_tokens=BLOCK_SIZE * PROMPT_BLOCKS + 1,
            arrival_time=0.0,
            arrival_number=self._number,
        )

    def _tokens(self, num_blocks: int) -> np.ndarray:
        return self._random.integers(0, 32000, BLOCK_SIZE * num_blocks, dtype=np.int32)


def serve(kv: KVCacheManager, request: Request) -> None:
    """A prompt from the queue to its end, as far as the cache is concerned."""
    kv.now += 0.001
    hits = kv.find_prefix(request, request.tokens)
    kv.start_table(request, hits, len(request.tokens))
    kv.append([request], [PROMPT_BLOCKS - hits.num_blocks])
    kv.register_full([request], [request.tokens])
    kv.release(request)


def timed(call: Callable[[], object], count: int) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(num_blocks: int) -> list[str]:
    gc.collect()
    before = psutil.Process().memory_info().rss
    kv, prompts = KVCacheManager(num_blocks, BLOCK_SIZE), Prompts()
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=1, max_model_len=1, max_num_waiting=1, max_num_penalty_rows=0
    )
    inspector = Inspector(Scheduler(config, kv, ()), replica=0, now=0.0)
    while kv.pool.num_evictions == 0:
        serve(kv, prompts.next())
    gc.collect()
    bytes_a_block = (psutil.Process().memory_info().rss - before) / kv.pool.num_findable
    requests = iter([prompts.next() for _ in range(NUM_MEASURED)])
    prompt_ms = timed(lambda: serve(kv, next(requests)), NUM_MEASURED)
    inspect_ms = timed(lambda: inspector.inspect(20, 0, kv.now), 100)
    page_ms = timed(lambda: block_page(kv, num_blocks // 2, 0), 100)
    return [
        f"{kv.pool.num_findable:,}",
        f"{1000 * prompt_ms / PROMPT_BLOCKS:.2f}",
        f"{inspect_ms:.2f}",
        f"{page_ms:.2f}",
        f"{bytes_a_block:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-blocks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    print(
        "| cached blocks | µs a block of a prompt, hashing included | inspect, ms | snapshot page, ms | bytes a block |"
    )
    print("|---|---|---|---|---|")
    for num_blocks in parser.parse_args().num_blocks:
        print(f"| {' | '.join(measure(num_blocks))} |", flush=True)


if __name__ == "__main__":
    main()
