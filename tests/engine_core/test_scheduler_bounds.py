"""What the scheduler promises in figures: latency of decoding rows, work per call, memory, preemptions."""

import math

import numpy as np
import pytest

from benchmarks.bench_scheduler import measure_thrash, measure_waste, random_prompt
from benchmarks.scheduler_load import SchedulerLoad
from engine_core.prompt_hashing import MAX_HASHED_BLOCKS
from engine_core.request import Request, RequestStatus

POLICIES = ["fcfs", "priority", "fair"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("max_num_partial_prefills", [1, 4])
def test_long_prompts_never_keep_a_decoding_row_waiting(policy: str, max_num_partial_prefills: int) -> None:
    """32 rows decode while long prompts come without end: each row is in each step, and no step is over its budget."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(
        num_blocks=8000,
        scheduling_policy=policy,
        max_num_partial_prefills=max_num_partial_prefills,
        max_num_seqs=48,
        max_num_batched_tokens=512,
        max_model_len=8192,
    )
    decoding = [load.add(random_prompt(rng, 8), 2000, share_key="d", priority=9) for _ in range(32)]
    for _ in range(4):
        load.step()
    rows = {request.row for request in decoding}
    assert all(request.first_token_time is not None for request in decoding)
    num_prompt_tokens = 0
    for number in range(400):
        while load.scheduler.num_waiting < 4:
            load.add(random_prompt(rng, 6000), 4, share_key=str(number % 3))
        load.collect()
        step = load.schedule()
        assert step is not None
        assert rows <= set(step.rows.tolist()), "a decoding row has no token in this step"
        assert step.num_tokens <= 512
        num_prompt_tokens += step.num_tokens - len(step.rows)
    assert num_prompt_tokens > 0.9 * 400 * (512 - 48), "long prompts leave the budget unused"


def count_partial(load: SchedulerLoad) -> int:
    table = load.scheduler.table
    return int((table.num_known - table.num_computed > 1)[table.running].sum())


def test_so_many_requests_start_at_once_while_others_run() -> None:
    """A flood of short prompts is taken in over several steps; where nothing runs, nobody waits for that."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=8000, max_num_seqs=400)
    sizes = []
    for num_others in (0, 200):
        for _ in range(200):
            load.add(random_prompt(rng, 8), 100)
        for _ in range(4):
            step = load.schedule()
            assert step is not None
            sizes.append(len(step.rows) - num_others)
            load.collect()
    assert sizes == [200] * 4 + [64, 128, 192, 200]


def test_no_more_prompts_are_started_once_there_are_enough_tokens() -> None:
    """The one that reaches the number is started whole."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=8000, max_num_seqs=32, max_num_batched_tokens=2048)
    for _ in range(5):
        load.add(random_prompt(rng, 100), 4)
    num_tokens = []
    while load.scheduler.num_waiting:
        step = load.scheduler.schedule(load.plan, load.now, enough_tokens=150)
        assert step is not None
        num_tokens.append(step.num_tokens)
    # Those that were started before have one token each.
    assert num_tokens == [200, 202, 104]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_so_many_prompts_are_computed_in_part(most: int) -> None:
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=8000, max_num_partial_prefills=most, max_num_batched_tokens=256, max_num_seqs=32)
    counts = []
    for _ in range(200):
        while load.scheduler.num_waiting < 8:
            load.add(random_prompt(rng, int(rng.integers(10, 2000))), 4)
        load.step()
        counts.append(count_partial(load))
    assert max(counts) == most


def test_a_short_prompt_passes_a_long_one_where_several_may_be_in_part() -> None:
    """It takes no more than its part; all other steps are the long one's, and full."""
    rng = np.random.default_rng(0)
    first_token = {}
    for most in (1, 2):
        load = SchedulerLoad(num_blocks=8000, max_num_partial_prefills=most, max_num_batched_tokens=256, max_num_seqs=8)
        long = load.add(random_prompt(rng, 3000), 4)
        load.schedule()
        short = load.add(random_prompt(rng, 100), 4)
        sizes = []
        while long.first_token_time is None or short.first_token_time is None:
            step = load.schedule()
            sizes.append(0 if step is None else step.num_tokens)
            load.collect()
        first_token[most] = short.first_token_time
        assert sizes[1:10] == [256] * 9
    assert first_token[2] < first_token[1] / 3


@pytest.mark.parametrize("has_idle_time", [True, False])
def test_hashing_a_long_prompt_is_spread_over_calls(has_idle_time: bool) -> None:
    """128 k tokens are 8,192 blocks; while others run no call hashes more than its part of them."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=20000, max_model_len=140_000, max_num_batched_tokens=2048, max_num_seqs=8)
    kv = load.scheduler.kv
    load.add(random_prompt(rng, 16), 500)
    for _ in range(3):
        load.step()
    request = load.add(random_prompt(rng, 131_072), 4)
    num_steps = 0
    while request.status is RequestStatus.WAITING:
        before = kv.num_hashed_blocks
        if has_idle_time:
            assert load.scheduler.hash_ahead() == (kv.num_hashed_blocks < 8191)
            assert kv.num_hashed_blocks - before <= MAX_HASHED_BLOCKS
        before = kv.num_hashed_blocks
        load.collect()
        load.schedule()
        # A block of the decoding row may be full, and the prompt's first chunk registers its own.
        assert kv.num_hashed_blocks - before <= MAX_HASHED_BLOCKS + 2
        num_steps += 1
    assert num_steps == 8192 // MAX_HASHED_BLOCKS // (2 if has_idle_time else 1)
    while request.status is not RequestStatus.FINISHED:
        load.step()
    assert kv.num_hashed_blocks <= 8192 + num_steps, "a block was hashed twice"


def test_an_idle_engine_starts_a_long_prompt_at_once() -> None:
    load = SchedulerLoad(num_blocks=20000, max_model_len=140_000, max_num_seqs=8)
    request = load.add(random_prompt(np.random.default_rng(0), 131_072), 4)
    assert load.schedule() is not None
    assert request.status is RequestStatus.RUNNING


def test_without_a_prefix_cache_nothing_is_hashed() -> None:
    load = SchedulerLoad(num_blocks=1000, caching=False)
    load.add(random_prompt(np.random.default_rng(0), 1000), 4)
    assert not load.scheduler.hash_ahead()
    while load.scheduler.has_unfinished:
        load.step()
    assert load.scheduler.kv.num_hashed_blocks == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_too_much_load_makes_progress_and_few_preemptions(policy: str) -> None:
    """The cache holds a fraction of what runs; the bound is that of `growth_room.py`, the share was measured."""
    figures = measure_thrash(policy, num_requests=300, num_blocks=1024)  # type: ignore[arg-type]
    print(policy, figures)
    assert figures["preemptions"] > 0
    assert figures["most_of_one_request"] <= 1 + math.ceil(math.log2(2048 / 16))
    assert figures["computed_again"] < 0.2
    assert figures["blocks_in_use"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("windows", [(0,), (0, 30)], ids=["full", "window"])
@pytest.mark.parametrize("seed", range(5))
def test_preemptions_of_a_request_are_bounded_by_its_length(policy: str, windows: tuple[int, ...], seed: int) -> None:
    """The worst that can be arranged: all short prompts with long outputs, in a cache for two of them, blocks of 1."""
    rng = np.random.default_rng(seed)
    load = SchedulerLoad(
        num_blocks=160 if windows == (0,) else 220, block_size=1, windows=windows, scheduling_policy=policy,
        max_model_len=80, max_num_batched_tokens=64, max_num_seqs=40, steps_in_flight=3,
    )  # fmt: skip
    requests: list[Request] = []
    for number in range(60):
        share, priority = str(rng.integers(4)), int(rng.integers(4))
        requests.append(load.add(random_prompt(rng, 2), 70 + number % 8, share_key=share, priority=priority))
    while load.scheduler.has_unfinished:
        load.step()
    assert sum(request.num_preemptions for request in requests) > 10
    assert max(request.num_preemptions for request in requests) <= 1 + math.ceil(math.log2(80))


def test_a_prompt_of_many_samples_is_stored_once() -> None:
    """2,048 tokens for 512 requests: full blocks are shared, only what follows them is each one's own."""
    rng = np.random.default_rng(0)
    shared = random_prompt(rng, 2048)
    load = SchedulerLoad(num_blocks=6000, max_num_seqs=512, max_model_len=2200)
    requests = [load.add(np.append(shared, 5), 100) for _ in range(512)]
    while any(request.first_token_time is None for request in requests):
        load.step()
    pool = load.scheduler.kv.pool
    assert load.scheduler.num_running == 512
    assert {tuple(request.block_tables[0][:128]) for request in requests} == {tuple(requests[0].block_tables[0][:128])}
    assert all(pool.reference_count(block) == 512 for block in requests[0].block_tables[0][:128])
    own = [block for request in requests for block in request.block_tables[0][128:]]
    assert len(set(own)) == len(own)
    assert pool.num_owned == 128 + len(own)
    assert load.scheduler.kv.num_hashed_blocks < 4000, "one prompt was hashed again and again"
    assert load.scheduler.kv.num_hit_tokens == 511 * 2048


def test_a_sample_starts_once_the_prompt_of_the_first_one_can_be_found() -> None:
    """Both fit together when they share the prompt, but not before it is known to be shared."""
    load = SchedulerLoad(
        num_blocks=150, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=2400, max_num_partial_prefills=2
    )
    prompt = random_prompt(np.random.default_rng(0), 1600)
    first, second = load.add(prompt, 700), load.add(prompt, 10)
    for _ in range(10):
        load.step()
    assert first.first_token_time is not None
    assert second.first_token_time is not None
    assert second.num_cached_tokens > 0


@pytest.mark.parametrize("windows", [(0,), (0, 32), (32,)])
def test_a_prompt_advances_by_single_tokens_and_can_be_found(windows: tuple[int, ...]) -> None:
    """Rows that decode leave it one token of each step."""
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=2000, windows=windows, max_num_seqs=8, max_num_batched_tokens=8, max_model_len=2048)
    for _ in range(7):
        load.add(random_prompt(rng, 3), 1500)
    for _ in range(5):
        load.step()
    request = load.add(random_prompt(rng, 300), 10)
    while request.first_token_time is None:
        load.step()
        if request.row >= 0:
            computed = min(300, int(load.scheduler.table.num_computed[request.row]))
            assert request.num_registered_blocks >= computed // 16


def test_samples_recompute_the_last_block_of_a_prompt_of_full_blocks() -> None:
    """The last token's logits are needed, and shared blocks are never written."""
    load = SchedulerLoad(num_blocks=100, max_num_seqs=8)
    requests = [load.add(random_prompt(np.random.default_rng(0), 64), 8) for _ in range(8)]
    load.schedule()
    assert load.scheduler.kv.pool.num_owned == 3 + 8
    assert len({request.block_tables[0][3] for request in requests}) == 8


def test_little_memory_is_reserved_and_not_used() -> None:
    figures = measure_waste()
    print(figures)
    assert figures["share_of_reserved"] < 0.04
    assert figures["blocks_per_request"] <= 0.6
