"""Gaps between steps, from timelines as the engine writes them."""

from pathlib import Path

import pytest

from benchmarks.step_gaps import Step, read_trace, summarize, table_rows, within
from engine_core.timeline import Timeline


def steps_with_gaps(gaps: list[float], first: int = 0) -> list[Step]:
    """Steps of 1000 µs; `gaps[i]` lies before step i + 1."""
    steps = [Step(first, start=0.0, end=1000.0, plan=30.0, update=20.0)]
    for number, gap in enumerate(gaps, first + 1):
        start = steps[-1].end + gap
        steps.append(Step(number, start=start, end=start + 1000.0, plan=30.0, update=20.0))
    return steps


def test_reads_what_the_engine_writes(tmp_path: Path) -> None:
    timeline = Timeline()
    for step in (8, 7):
        start = step * 1_000_000
        timeline.planned(step, num_seqs=3, num_tokens=9, plan_ns=start, dispatch_ns=start + 20_000)
        timeline.collected(step, start + 50_000, start + 950_000, start + 960_000, start + 970_000)
    timeline.write(tmp_path / "trace.json")
    steps = read_trace(tmp_path / "trace.json")
    assert [step.number for step in steps] == [7, 8]
    assert (steps[0].num_seqs, steps[0].num_tokens) == (3, 9)
    assert (steps[0].start, steps[0].end, steps[0].plan, steps[0].update) == pytest.approx((7050, 7950, 20, 10))
    assert within(steps, 7500, 9000) == [steps[1]]


def test_edges_do_not_count() -> None:
    gaps = [5000.0, 5000.0] + [10.0] * 35 + [150.0] + [5000.0]
    figures = summarize([steps_with_gaps(gaps)])  # 40 steps, two left out at either end
    assert (figures["num_steps"], figures["num_gaps"]) == (36, 35)
    assert figures["gap_us_p50"] == pytest.approx(10)
    assert figures["gap_us_max"] == pytest.approx(10)
    assert figures["share_over_100_us"] == 0
    assert figures["cpu_us_p50"] == pytest.approx(50)
    assert figures["step_us_p50"] == pytest.approx(1000)


def test_long_gaps_and_missing_steps() -> None:
    steps = steps_with_gaps([20.0, 200.0, 20.0, 20.0])
    figures = summarize([steps, [steps[0], *steps[2:]]])
    assert figures["num_gaps"] == 4 + 2  # the gap around the missing step is not one
    assert figures["share_over_100_us"] == pytest.approx(1 / 6)


def test_nothing_to_report() -> None:
    assert summarize([]) == summarize([[Step(1)]]) == {}
    assert len(table_rows({"decode1": {}})) == 1
