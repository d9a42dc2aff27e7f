"""Who is served first under each policy, who is preempted, and that nobody starves."""

import numpy as np
import pytest

from benchmarks.scheduler_load import STEP_SECONDS, SchedulerLoad
from engine_core.ipc.messages import FINISH_LENGTH
from engine_core.policies.base import SchedulingPolicy
from engine_core.policies.fair_share import FairShare
from engine_core.request import Request, RequestStatus


def prompt(length: int = 4, first: int = 0) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


def one_at_a_time(policy: str, **options: object) -> SchedulerLoad:
    defaults = {"max_num_seqs": 1, "max_num_batched_tokens": 64, "steps_in_flight": 1}
    return SchedulerLoad(200, scheduling_policy=policy, **defaults, **options)


def order_of_ends(load: SchedulerLoad) -> list[Request]:
    ended: list[Request] = []
    while load.scheduler.has_unfinished:
        ended += [finished.request for finished in load.step().finished]
    return ended


def test_fcfs_is_by_arrival_whatever_the_priority() -> None:
    load = one_at_a_time("fcfs")
    requests = [load.add(prompt(), 3, priority=-number, share_key=str(number % 2)) for number in range(6)]
    assert order_of_ends(load) == requests


def test_priority_is_by_priority_then_arrival() -> None:
    load = one_at_a_time("priority")
    low, middle, high, low_too = (load.add(prompt(), 3, priority=priority) for priority in (2, 1, 0, 2))
    assert order_of_ends(load) == [high, middle, low, low_too]


@pytest.mark.parametrize("rate", [1.0, 0.0])
def test_a_low_priority_gets_its_turn_by_ageing(rate: float) -> None:
    """One better request after the other arrives; the low one waits no longer than its handicap is worth."""
    load = one_at_a_time("priority", priority_ageing_rate=rate)
    low = load.add(prompt(), 2, priority=3)
    while load.now < 5.0 and low.status is RequestStatus.WAITING:
        while load.scheduler.num_waiting < 3:
            load.add(prompt(), 2, priority=0)
        load.step()
    if rate == 0.0:
        assert low.status is RequestStatus.WAITING, "at rate 0 priorities are strict"
    else:
        assert 2.5 < load.now < 3.0 + 10 * STEP_SECONDS


def test_a_client_that_floods_the_queue_does_not_delay_another_one() -> None:
    load = one_at_a_time("fair")
    flood = [load.add(prompt(), 4, share_key="a") for _ in range(20)]
    load.step()
    other = load.add(prompt(), 4, share_key="b")
    assert order_of_ends(load)[:2] == [flood[0], other]


def test_clients_get_equal_service_whatever_they_ask_for() -> None:
    """One asks in long requests, one in short ones, one in many at once; each has a third in the end."""
    load = SchedulerLoad(num_blocks=2000, scheduling_policy="fair", max_num_seqs=8, max_num_batched_tokens=256)
    sizes = {"long": (100, 200), "short": (8, 16), "prompts": (200, 4)}
    served = dict.fromkeys(sizes, 0)
    waiting = dict.fromkeys(sizes, 0)
    for _ in range(4000):
        for key, (length, max_tokens) in sizes.items():
            while waiting[key] < 16:
                load.add(prompt(length, first=int(load.now * 1000)), max_tokens, share_key=key)
                waiting[key] += 1
        for finished in load.step().finished:
            key = finished.request.share_key
            computed = finished.request.num_prompt_tokens - finished.request.num_cached_tokens
            served[key] += computed + 2 * finished.num_output_tokens
            waiting[key] -= 1
    assert max(served.values()) < 1.15 * min(served.values())


def test_a_pause_gives_no_credit() -> None:
    """Who comes back has its part from now on, not what it left to others meanwhile."""
    load = one_at_a_time("fair")
    once = load.add(prompt(), 2, share_key="b")
    while once.status is not RequestStatus.FINISHED:
        load.step()
    for _ in range(40):
        load.add(prompt(), 4, share_key="a")
    for _ in range(60):
        load.step()
    for _ in range(40):
        load.add(prompt(), 4, share_key="b")
    keys = [request.share_key for request in order_of_ends(load)][:20]
    assert 8 <= keys.count("a") <= 12


def test_a_client_in_debt_does_not_starve_behind_ever_new_ones() -> None:
    load = one_at_a_time("fair")
    load.add(prompt(), 100, share_key="old")
    load.step()
    again = load.add(prompt(), 2, share_key="old")
    num_steps = num_new = 0
    while again.status is RequestStatus.WAITING:
        while load.scheduler.num_waiting < 4:
            num_new += 1
            load.add(prompt(), 2, share_key=f"new {num_new}")
        load.step()
        num_steps += 1
        assert num_steps < 600
    assert num_new > 20, "new ones did not come first at all"


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_last_in_order_is_preempted(policy: str) -> None:
    """Two requests outgrow the cache together. The earlier one loses where the policy likes it less."""
    load = SchedulerLoad(
        num_blocks=12, block_size=4, scheduling_policy=policy, max_num_seqs=4, max_num_batched_tokens=64
    )
    first = load.add(prompt(8, 100), 24, priority=5)
    second = load.add(prompt(8, 200), 24, priority=0)
    order_of_ends(load)
    preempted, kept = (second, first) if policy == "fcfs" else (first, second)
    assert preempted.num_preemptions > 0
    assert kept.num_preemptions == 0


def test_the_client_that_had_most_is_preempted() -> None:
    """The one with two requests, although the other one's request is the last to arrive."""
    load = SchedulerLoad(
        num_blocks=16, block_size=4, scheduling_policy="fair", max_num_seqs=4, max_num_batched_tokens=64
    )
    two = [load.add(prompt(8, 100 * number), 24, share_key="a") for number in (1, 2)]
    other = load.add(prompt(8, 300), 24, share_key="b")
    order_of_ends(load)
    assert sum(request.num_preemptions for request in two) > 0
    assert other.num_preemptions == 0


@pytest.mark.parametrize("name", ["fcfs", "priority", "fair"])
def test_no_client_may_fill_the_queue(name: str) -> None:
    load = one_at_a_time(name)
    policy = load.scheduler.policy

    def fill(key: str | None) -> int:
        count = 0
        while not policy.is_full(key, 64):
            load.add(prompt(), 2, share_key=key)
            count += 1
        return count

    assert [fill("a"), fill("b"), fill("c")] == [32, 16, 8]
    assert fill(None) == 8, "without a key nobody is told apart"
    assert policy.is_full("d", 64)
    order_of_ends(load)
    assert [policy.num_waiting_of(key) for key in "abc"] == [0, 0, 0]


@pytest.mark.parametrize("name", ["fcfs", "priority", "fair"])
def test_a_clients_part_of_the_queue_is_counted(name: str) -> None:
    """What starts, is preempted, or ends while it waits."""
    load = SchedulerLoad(num_blocks=12, block_size=4, scheduling_policy=name, max_num_seqs=2, max_num_batched_tokens=64)
    policy = load.scheduler.policy
    requests = [load.add(prompt(8, 100 * number), 24, share_key="ab"[number % 2]) for number in range(6)]
    assert (policy.num_waiting_of("a"), policy.num_waiting_of("b"), policy.num_waiting_of("c")) == (3, 3, 0)
    load.scheduler.abort(requests[4])
    while load.scheduler.has_unfinished:
        load.step()
        waiting = [request.share_key for request in requests if request.status is RequestStatus.WAITING]
        assert [policy.num_waiting_of(key) for key in "ab"] == [waiting.count(key) for key in "ab"]
    assert sum(request.num_preemptions for request in requests) > 0


def test_shares_do_not_pile_up() -> None:
    """New keys take the place of those that left no debt behind."""
    load = one_at_a_time("fair")
    for number in range(3000):
        load.add(prompt(), 1, share_key=f"key {number}")
        order_of_ends(load)
    policy = load.scheduler.policy
    assert isinstance(policy, FairShare)
    assert len(policy._number_of) <= 1024


def test_ended_requests_leave_the_queue() -> None:
    """Also those far from its head, so that a queue which stands still does not grow by what is aborted in it."""
    for policy in ("fcfs", "priority", "fair"):
        load = one_at_a_time(policy)
        load.add(prompt(), 50, share_key="a")
        load.step()
        head = load.add(prompt(), 2, share_key="a")
        for number in range(1000):
            aborted = load.add(prompt(), 2, share_key="a", priority=number)
            assert load.scheduler.abort(aborted).reason != FINISH_LENGTH
        assert load.scheduler.num_waiting == 1
        assert load.scheduler.policy.peek() is head
        assert num_entries(load.scheduler.policy) < 200


def num_entries(policy: SchedulingPolicy) -> int:
    queues = policy._queues if isinstance(policy, FairShare) else [policy._queue]  # type: ignore[attr-defined]
    return sum(len(queue._heap) for queue in queues)
