"""When steps are planned: late behind long ones, at once behind short ones; and how many new prompts one takes."""

from engine_core.config.engine_config import SchedulerConfig
from engine_core.step_pacing import FEW_WAITING, StepPacing

MS = 1_000_000


def make(may_hold: bool = True) -> StepPacing:
    config = SchedulerConfig(
        max_num_seqs=64, max_num_batched_tokens=8192, max_model_len=8192, max_num_waiting=64, max_num_penalty_rows=8
    )
    return StepPacing(config, may_hold)


def run_steps(pacing: StepPacing, *steps: tuple[int, int]) -> int:
    """Steps of (tokens, ms), one after the other; returns when the last one ended."""
    now = 0
    for num_tokens, milliseconds in steps:
        pacing.dispatched(num_tokens, now)
        pacing.collected(now, now + milliseconds * MS)
        now += milliseconds * MS
    return now


def test_nothing_waits_before_a_long_step_was_seen() -> None:
    pacing = make()
    assert pacing.wait_ns(0, 0) == 0
    pacing.dispatched(1024, 0)
    assert pacing.wait_ns(0, 0) == 0
    pacing.dispatched(1024, 0)
    assert pacing.wait_ns(0, 0) is None, "two steps are under way"


def test_planning_waits_until_shortly_before_a_long_step_ends() -> None:
    pacing = make()
    now = run_steps(pacing, (1000, 25), (1000, 20), (1000, 24))
    assert pacing.wait_ns(0, now) == 0, "nothing runs"
    pacing.dispatched(1000, now + MS)
    # 0.9 of the fastest step's 20 ms from its dispatch on, less 4 ms.
    assert pacing.wait_ns(0, now + MS) == 14 * MS
    assert pacing.wait_ns(0, now + 10 * MS) == 5 * MS
    assert pacing.wait_ns(FEW_WAITING, now + 10 * MS) == 5 * MS
    assert pacing.wait_ns(FEW_WAITING + 1, now + 10 * MS) == 0, "planning so many takes long"
    assert pacing.wait_ns(0, now + 30 * MS) == 0


def test_a_step_that_was_queued_begins_when_the_one_before_it_ends() -> None:
    pacing = make()
    now = run_steps(pacing, (1000, 20))
    pacing.dispatched(1000, now)
    pacing.dispatched(500, now + 2 * MS)
    pacing.collected(now, now + 22 * MS)
    assert pacing.wait_ns(0, now + 22 * MS) == 5 * MS


def test_short_steps_are_planned_at_once() -> None:
    pacing = make()
    now = run_steps(pacing, (1000, 20), (16, 5))
    pacing.dispatched(16, now)
    assert pacing.wait_ns(0, now) == 0


def test_nothing_waits_where_a_plan_brings_blocks_back() -> None:
    pacing = make(may_hold=False)
    now = run_steps(pacing, (1000, 20))
    pacing.dispatched(1000, now)
    assert pacing.wait_ns(0, now) == 0


def test_prompts_of_some_twenty_milliseconds_are_enough_where_few_wait() -> None:
    pacing = make()
    assert pacing.enough_tokens(1) == 8192
    run_steps(pacing, (64, 9), (1000, 25))
    assert [pacing.enough_tokens(count) for count in (1, 3, 4, FEW_WAITING)] == [800, 800, 1600, 1600]
    assert pacing.enough_tokens(FEW_WAITING + 1) == 8192


def test_a_prompt_starts_however_slow_the_machine_is() -> None:
    """Steps of one token each that take longer than a step of new prompts should: nothing may wait for an event."""
    pacing = make()
    run_steps(pacing, *[(1, 90)] * 20)
    assert [pacing.enough_tokens(count) for count in (1, 4)] == [1, 1]
