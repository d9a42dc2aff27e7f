"""Sliding windows in the scheduler: what a long request holds, and what it can be served with."""

import pytest

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import BlockDemand
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from tests.engine_core.fake_worker import FakeWorker, step_shape

BLOCK, WINDOW, CHUNK = 4, 10, 12


class Engine:
    """A scheduler with two steps in flight on the fake worker, which checks that every token sees what it must."""

    def __init__(self, num_blocks: int, windows: tuple[int, ...], max_model_len: int = 400) -> None:
        config = SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=CHUNK,
            max_model_len=max_model_len,
            max_num_waiting=10,
            max_num_penalty_rows=1,
        )
        self.scheduler = Scheduler(config, KVCacheManager(num_blocks, BLOCK, windows=windows), ())
        self.worker = FakeWorker(step_shape(config, BLOCK, len(windows)), num_blocks, len, windows)
        self.num_added = 0

    def add(self, prompt: list[int], max_tokens: int) -> Request:
        self.num_added += 1
        request = Request(
            request_id=str(self.num_added),
            client=b"",
            handle=self.num_added,
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens),
            max_total_tokens=self.scheduler.config.max_model_len,
            arrival_time=0.0,
            arrival_number=self.num_added,
        )
        self.scheduler.add(request)
        return request

    def run(self, request: Request) -> tuple[int, int]:
        """To the end; returns the most blocks that a window's table of `request` held while its prompt was computed,
        and afterwards."""
        inflight, most = [], [0, 0]
        while self.scheduler.has_unfinished or inflight:
            while len(inflight) < 2:
                plan = self.worker.new_plan()
                step = self.scheduler.schedule(plan, 0.0)
                if step is None:
                    break
                self.worker.dispatch(plan)
                inflight.append(step)
            if request.row >= 0 and request.block_tables:
                held = len(request.block_tables[-1]) - request.num_behind
                decodes = int(self.scheduler.table.num_known[request.row]) > request.num_prompt_tokens + 2
                most[decodes] = max(most[decodes], held)
            self.scheduler.update(inflight.pop(0), self.worker.run_next(), 0.0)
        return most[0], most[1]


@pytest.mark.parametrize("windows", [(WINDOW,), (0, WINDOW), (0, WINDOW, WINDOW)])
@pytest.mark.parametrize("num_prompt_tokens", [1, 50, 180])
def test_a_window_holds_few_blocks_whatever_the_length(windows: tuple[int, ...], num_prompt_tokens: int) -> None:
    engine = Engine(400, windows)
    request = engine.add(list(range(num_prompt_tokens)), 200)
    in_prompt, afterwards = engine.run(request)
    # The window of the oldest token in flight and two tokens more; while the prompt runs, two chunks more.
    assert afterwards <= -(-WINDOW // BLOCK) + 2
    assert in_prompt <= -(-(WINDOW + 2 * CHUNK) // BLOCK) + 1
    assert engine.scheduler.kv.pool.num_owned == 0


def test_a_small_pool_serves_a_request_that_is_longer_than_it() -> None:
    """A request that takes all that there is waits for blocks of steps in flight and does not preempt itself."""
    num_blocks = BlockDemand.of((WINDOW,), BLOCK, CHUNK).peak(400)
    assert num_blocks * BLOCK < 40
    engine = Engine(num_blocks, (WINDOW,))
    engine.run(engine.add(list(range(200)), 150))
    assert engine.scheduler.num_preemptions == 0


def test_a_prefix_is_found_although_its_beginning_was_given_up() -> None:
    """The second request shares the end of the prefix only, and what it does not have is not sent to the workers."""
    engine = Engine(20, (WINDOW,))
    prompt = list(range(60))
    engine.run(engine.add(prompt, 2))
    engine.run(engine.add([7] * 40, 2))  # takes blocks of the first one's beginning
    assert engine.scheduler.kv.pool.num_evictions > 0
    again = engine.add([*prompt, 1, 2, 3], 3)
    engine.run(again)
    assert again.num_cached_tokens == 60
