"""How long a step waits for masks, and which rows it skips: nobody is held up for longer than a step, nor twice."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from engine_core.ipc.ring import Ring
from engine_core.ipc.step import NUM_MASKS, NUM_SEQS, StepPlan, StepShape, late_layout, plan_layout
from gpu_workers.running.late_masks import ALONE_NS, BESIDE_OTHERS, MaskArrivals

SHAPE = StepShape(max_num_seqs=5, max_num_batched_tokens=64, max_model_len=100, block_size=16, num_mask_words=4)
HOUR_NS = 3_600_000_000_000


class Setup:
    """Steps whose masks come while the worker sleeps, or never."""

    def __init__(self) -> None:
        self.plan = StepPlan.over(plan_layout(SHAPE), bytearray(plan_layout(SHAPE).num_bytes))
        self.ring = Ring.create("test", plan_layout(SHAPE).num_bytes, 3, 1, late_layout(SHAPE).num_bytes)
        self.arrivals = MaskArrivals(self.ring, SHAPE, self._sleep)
        self.sequence = 0
        self.sleeps: list[int] = []
        self.wake: Callable[[], None] = self.never

    def _sleep(self, timeout_ms: int) -> None:
        self.sleeps.append(timeout_ms)
        self.wake()

    def never(self) -> None:
        raise AssertionError("the step waits")

    def bring(self, *masks: int) -> None:
        self.arrivals.parts[self.ring.slot_of(self.sequence)].sequences[list(masks)] = self.sequence

    def step(
        self, rows: list[int], masked: list[int], took_ns: int, given: int = 0, comes_early: bool = False
    ) -> list[int]:
        """The scheduled rows that are skipped by a step whose forward pass has just ended."""
        self.sequence += 1
        self.plan.header[NUM_SEQS], self.plan.header[NUM_MASKS] = len(rows), len(masked)
        self.plan.rows[: len(rows)], self.plan.mask_rows[: len(masked)] = rows, masked
        self.plan.num_given[: len(rows)] = given
        if comes_early:
            self.bring(*range(len(masked)))
        ended_ns = time.monotonic_ns()
        return self.arrivals.wait(self.sequence, self.plan, lambda: (ended_ns, took_ns)).tolist()


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    os.close(setup.ring.fd)


def test_what_is_there_is_not_waited_for(setup: Setup) -> None:
    assert setup.step([3, 1, 4], [2, 0], HOUR_NS, comes_early=True) == []
    setup.sequence = 1
    setup.ring.publish_late(2)
    assert setup.step([3, 1, 4], [2, 0], HOUR_NS) == []
    assert setup.sleeps == []


def test_rows_without_masks_are_held_up_for_an_eighth(setup: Setup) -> None:
    assert setup.step([3, 1, 4], [2, 0], 0) == [2, 0]
    setup.wake = lambda: setup.bring(0, 1)
    assert setup.step([3, 1, 4], [2, 0], 50_000_000_000, given=1) == []
    assert len(setup.sleeps) == 1
    assert 5_000 < setup.sleeps[0] <= 50_000 // BESIDE_OTHERS


def test_masks_that_came_in_time_are_used(setup: Setup) -> None:
    setup.wake = lambda: setup.bring(1)
    setup.arrivals._was_skipped[[0, 2]] = True  # these may not wait, so the step waits for the other one alone
    assert setup.step([0, 1, 2, 3], [0, 1, 2], HOUR_NS) == [0, 2]
    assert len(setup.sleeps) == 1


def test_a_row_holds_others_up_once(setup: Setup) -> None:
    """Steps that were planned before the core knew do not wait again; one that gives the row its token does."""
    assert setup.step([0, 1], [1], 0) == [1]
    for _ in range(3):
        assert setup.step([0, 1], [1], HOUR_NS) == [1]
    assert setup.step([0, 1], [1], HOUR_NS, comes_early=True) == []
    setup.wake = lambda: setup.bring(0)
    assert setup.step([0, 1], [1], HOUR_NS) == []
    assert len(setup.sleeps) == 1, "its last mask was in time"
    assert setup.step([0, 1], [1], 0) == [1]
    assert setup.step([0, 1], [1], HOUR_NS, given=1) == []
    assert len(setup.sleeps) == 2


def test_where_all_rows_have_masks_nobody_is_held_up(setup: Setup) -> None:
    setup.wake = lambda: setup.bring(0, 1)
    for turn, (took_ns, longest_ns) in enumerate([(0, ALONE_NS), (50_000_000_000, 50_000_000_000)], start=1):
        assert setup.step([0, 1], [1, 0], took_ns) == []
        assert len(setup.sleeps) == turn
        assert longest_ns // 2 < setup.sleeps[-1] * 1_000_000 <= longest_ns


def test_a_forward_pass_that_runs_is_waited_for(setup: Setup) -> None:
    """Whatever rows it is for: it would have to end anyway."""
    setup.sequence = 1
    setup.plan.header[NUM_SEQS], setup.plan.header[NUM_MASKS] = 2, 1
    setup.plan.rows[:2], setup.plan.mask_rows[:1] = [0, 1], [1]
    setup.arrivals._was_skipped[:] = True
    setup.wake = lambda: None
    skipped = setup.arrivals.wait(1, setup.plan, lambda: (1, HOUR_NS) if len(setup.sleeps) == 3 else None)
    assert skipped.tolist() == [1]
    assert setup.sleeps == [1, 1, 1]
