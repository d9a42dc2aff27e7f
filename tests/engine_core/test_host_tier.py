"""The host tier's index by hand: what is kept, what is given up, how a long prefix comes back beside other requests."""

from collections.abc import Iterator
from typing import Any

from engine_core.config.engine_config import SchedulerConfig
from engine_core.host_tier import HostTier
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from tests.engine_core.fake_worker import FakeWorker, step_shape

BLOCK = 4


def stored(tier: HostTier, digests: list[bytes], step_id: int) -> list[int]:
    """Evicts blocks 0, 1, ... with these digests, runs the step, and returns the slots of those that are stored."""
    for block, digest in enumerate(digests):
        tier.evicted(block, digest)
    stores, loads = tier.dispatch(step_id)
    assert len(loads) == 0
    tier.collect(step_id, tier.num_ready)
    return stores[:, 1].tolist()


def make_tier(num_slots: int, max_stores: int = 8, max_loads: int = 8) -> HostTier:
    tier = HostTier(num_slots, max_stores, max_loads, max_loads)
    tier.collect(0, num_slots)
    return tier


def test_nothing_is_stored_before_the_workers_have_memory() -> None:
    tier = HostTier(4, 4, 4, 4)
    assert stored(tier, [b"a"], 1) == []
    tier.collect(1, 2)
    assert stored(tier, [b"a", b"b", b"c"], 2) == [1, 0]
    assert [digest in tier for digest in (b"a", b"b", b"c")] == [True, True, False]


def test_the_least_recently_used_goes_first() -> None:
    tier = make_tier(3)
    assert stored(tier, [b"a", b"b", b"c"], 1) == [2, 1, 0]
    assert stored(tier, [b"a"], 2) == []  # is there; that it was evicted again makes it young
    assert tier.hold([b"b"]) == [1]
    tier.load([1], [7])
    assert [pairs.tolist() for pairs in tier.dispatch(3)] == [[], [[7, 1]]]
    tier.collect(3, 3)
    assert stored(tier, [b"d"], 4) == [0]  # c's
    assert b"c" not in tier
    assert (tier.num_stored, tier.num_loaded) == (4, 1)


def test_the_beginning_of_a_chain_outlives_its_end() -> None:
    tier = make_tier(3)
    stored(tier, [b"3", b"2", b"1"], 1)
    tier.load(tier.hold([b"1", b"2", b"3"]), [4, 5, 6])
    tier.dispatch(2)
    tier.collect(2, 3)
    stored(tier, [b"x", b"y"], 3)
    assert [digest in tier for digest in (b"1", b"2", b"3")] == [True, False, False]


def test_a_slot_in_flight_is_not_given_up() -> None:
    tier = make_tier(1)
    tier.evicted(0, b"a")
    tier.dispatch(1)
    tier.evicted(0, b"b")
    assert [len(pairs) for pairs in tier.dispatch(2)] == [0, 0]
    assert b"a" in tier
    tier.collect(1, 1)
    assert stored(tier, [b"b"], 3) == [0]
    assert b"a" not in tier


def test_what_a_plan_has_no_room_for_is_left_out() -> None:
    tier = make_tier(8, max_stores=2)
    assert stored(tier, [b"a", b"b", b"c"], 1) == [7, 6]
    assert b"c" not in tier


def make_request(number: int, tokens: list[int], max_tokens: int) -> Request:
    return Request(
        request_id=str(number),
        client=b"",
        handle=number,
        prompt_token_ids=tokens,
        sampling=SamplingParams(max_tokens=max_tokens),
        max_total_tokens=64,
        arrival_time=0.0,
        arrival_number=number,
    )


class Engine:
    """A scheduler and a fake worker, one step at a time."""

    def __init__(self, num_blocks: int, max_loads_beside_others: int) -> None:
        config = SchedulerConfig(
            max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64, max_num_waiting=9, max_num_penalty_rows=1
        )
        shape = step_shape(config, BLOCK, num_host_blocks=50)
        self.tier = HostTier(50, shape.max_stores, shape.max_loads, max_loads_beside_others)
        self.kv = KVCacheManager(num_blocks, BLOCK, host=self.tier)
        self.scheduler = Scheduler(config, self.kv, ())
        self.worker = FakeWorker(shape, num_blocks, lambda tokens: len(tokens))
        self._number = 0

    def add(self, tokens: list[int], max_tokens: int = 1) -> Request:
        self._number += 1
        request = make_request(self._number, tokens, max_tokens)
        self.scheduler.add(request)
        return request

    def steps(self) -> Iterator[dict[str, Any]]:
        """Runs until nothing is left; what each plan copied."""
        while self.scheduler.has_unfinished:
            plan = self.worker.new_plan()
            step = self.scheduler.schedule(plan, 0.0)
            assert step is not None
            self.worker.dispatch(plan)
            self.scheduler.update(step, self.worker.run_next(), 0.0)
            yield {"stores": plan.num_stores, "loads": plan.num_loads, "tokens": plan.num_tokens}

    def run(self) -> list[dict[str, Any]]:
        return list(self.steps())


def evicted_prompt(engine: Engine) -> list[int]:
    """A prompt of ten blocks and one token that the host has and the cache has not."""
    prompt = list(range(100, 141))
    engine.add([1])
    engine.run()  # its result says how many slots there are
    engine.add(prompt)
    engine.run()
    engine.add(list(range(200, 263)))  # takes all 16 blocks
    engine.run()
    return prompt


def test_alone_a_prefix_comes_back_with_the_step_that_uses_it() -> None:
    engine = Engine(16, max_loads_beside_others=3)
    prompt = evicted_prompt(engine)
    request = engine.add(prompt)
    assert engine.run() == [{"stores": 10, "loads": 10, "tokens": 1}]
    assert request.num_cached_tokens == 40
    assert engine.kv.num_hit_tokens == 40


def test_beside_others_it_comes_back_in_parts() -> None:
    """Nobody waits for a load of many blocks; the request starts with the last part of its own."""
    engine = Engine(16, max_loads_beside_others=4)
    prompt = evicted_prompt(engine)
    other, request = engine.add([5, 6], max_tokens=6), engine.add(prompt)
    steps = engine.run()
    assert [step["loads"] for step in steps] == [4, 4, 2, 0, 0, 0]
    assert [step["tokens"] for step in steps] == [2, 1, 2, 1, 1, 1]
    assert (other.num_cached_tokens, request.num_cached_tokens) == (0, 40)


def test_parts_that_came_back_for_an_aborted_request_are_cached() -> None:
    engine = Engine(16, max_loads_beside_others=4)
    prompt = evicted_prompt(engine)
    engine.add([5, 6], max_tokens=2)
    request = engine.add(prompt)
    next(engine.steps())
    engine.scheduler.abort(request)
    engine.run()
    assert engine.kv.pool.num_owned == 0
    again = engine.add(prompt)
    assert engine.run()[0]["loads"] == 6
    assert again.num_cached_tokens == 40
