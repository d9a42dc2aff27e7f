"""What the plan says of the rows' common beginning, against their block tables compared entry by entry."""

import numpy as np
import pytest

from benchmarks.scheduler_load import SchedulerLoad
from engine_core.common_beginning import MIN_ROWS
from engine_core.ipc.step import NUM_SHARING_SEQS

BLOCK_SIZE = 16


def num_common_keys(load: SchedulerLoad, rows: list[int]) -> int:
    tables = [load.scheduler.table.request(row).block_tables[0] for row in rows]
    num_blocks = 0
    for blocks in zip(*tables, strict=False):
        if len(set(blocks)) > 1:
            break
        num_blocks += 1
    return num_blocks * BLOCK_SIZE


def step_and_check(load: SchedulerLoad) -> tuple[int, int]:
    """(keys that the plan says, keys that the rows have in common) of one more step; (0, 0) of a collected one."""
    step = None if load.num_inflight == load.config.steps_in_flight else load.schedule()
    if step is None:
        if load.num_inflight:
            load.collect()
        return 0, 0
    said, num_sharing = load.plan.num_shared_keys, int(load.plan.header[NUM_SHARING_SEQS])
    assert (load.plan.num_query_tokens[:num_sharing] == 1).all()
    rows = step.rows[:num_sharing].tolist()
    computed_before = int(load.scheduler.table.num_computed[rows].min()) - 1 if rows else 0
    assert said % BLOCK_SIZE == 0 or said == computed_before
    assert said <= computed_before
    assert said <= num_common_keys(load, rows)
    if len(rows) < MIN_ROWS:
        assert said == 0
        return 0, 0
    return said, min(num_common_keys(load, rows), computed_before)


@pytest.mark.parametrize("seed", range(4))
def test_never_more_than_the_tables_have_in_common(seed: int) -> None:
    """Requests of two system prompts come and go, some with a part of one, and few blocks mean preemptions; where the
    rows have a beginning in common, the plans say so at some time."""
    rng = np.random.default_rng(seed)
    load = SchedulerLoad(num_blocks=220, block_size=BLOCK_SIZE, max_num_seqs=40, max_num_batched_tokens=512)
    prompts = [rng.integers(10, 5000, 200), rng.integers(10, 5000, 200)]
    found = []
    for number in range(1500):
        if load.scheduler.num_waiting < 4 and rng.random() < 0.5:
            kind = 0 if number % 500 < 400 else int(rng.integers(2))
            kept = 200 if rng.random() < 0.95 else int(rng.integers(0, 200))
            own = rng.integers(10, 5000, int(rng.integers(1, 60)))
            load.add(np.concatenate([prompts[kind][:kept], own]), int(rng.integers(1, 500)))
        found.append(step_and_check(load))
    assert load.scheduler.num_preemptions > 0
    assert max(said for said, _ in found) >= 96


@pytest.mark.parametrize("seed", range(6))
def test_the_next_tenant_of_a_row_is_compared_anew(seed: int) -> None:
    """Prompts that share their first block alone follow each other in rows that were given up by preemption."""
    rng = np.random.default_rng(seed)
    load = SchedulerLoad(num_blocks=160, block_size=BLOCK_SIZE, max_num_seqs=40, max_num_batched_tokens=512)
    prompt = rng.integers(10, 5000, 320)
    for _ in range(30):
        load.add(np.concatenate([prompt, rng.integers(10, 5000, 8)]), 200)
    scheduler = load.scheduler
    while not (gone := [request for request in scheduler.waiting if request.num_preemptions and request.row < 0]):
        step_and_check(load)
    for request in [*gone, *list(scheduler.running)[3:15]]:
        scheduler.abort(request)
    for _ in range(12):
        load.add(np.concatenate([prompt, rng.integers(10, 5000, 3)]), 60)
    load.add(np.concatenate([prompt[:16], rng.integers(10, 5000, 200)]), 60)
    said = []
    while scheduler.has_unfinished:
        said.append(step_and_check(load)[0])
    assert max(said) > 200


def test_all_of_it_is_found_and_grows_again_when_the_odd_one_has_gone() -> None:
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=2000, block_size=BLOCK_SIZE)
    prompt = rng.integers(10, 5000, 320)
    load.add(prompt, 2)
    while load.scheduler.has_unfinished:
        load.step()
    for _ in range(20):
        load.add(np.concatenate([prompt, rng.integers(10, 5000, 8)]), 60)
    load.add(np.concatenate([prompt[:100], rng.integers(10, 5000, 8)]), 10)
    said = []
    while load.scheduler.has_unfinished:
        said.append(step_and_check(load))
    decode = [pair for pair in said if pair != (0, 0)]
    assert sum(a < b for a, b in decode) <= load.config.steps_in_flight, (
        "the odd one's last steps are not collected yet"
    )
    assert decode[0] == (96, 96)
    assert decode[-1] == (320, 320)


def test_windows_have_none() -> None:
    rng = np.random.default_rng(0)
    load = SchedulerLoad(num_blocks=2000, block_size=BLOCK_SIZE, windows=(64,))
    prompt = rng.integers(10, 5000, 320)
    for _ in range(20):
        load.add(np.concatenate([prompt, rng.integers(10, 5000, 8)]), 20)
    while load.scheduler.has_unfinished:
        load.step()
        assert load.plan.num_shared_keys == 0
