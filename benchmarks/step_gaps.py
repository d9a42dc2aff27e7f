"""What lies between steps, read from the engine's timeline (`--trace`): does the device wait for anybody?

    python -m benchmarks.step_gaps TRACE.json

A gap is the time from the end of one step on the worker to the start of the next one. The first and the last twentieth
of a run's steps are left out (prompts arrive, rows run dry), and so is a gap where a step between is missing. Times are
microseconds, as in the trace.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LONG_GAP_US = 100.0
EDGE = 0.05
"""Share of a run's steps at either end that does not count."""


@dataclass
class Step:
    """One step of a trace; `plan` and `update` are what the engine core spent on it."""

    number: int
    num_seqs: int = 0
    num_tokens: int = 0
    start: float = 0.0
    end: float = 0.0
    plan: float = 0.0
    update: float = 0.0


def read_trace(path: Path) -> list[Step]:
    """All steps of a trace in order."""
    steps: dict[int, Step] = {}
    for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]:
        if event["ph"] != "X":
            continue
        details = event["args"]
        step = steps.setdefault(details["step"], Step(details["step"], details["num_seqs"], details["num_tokens"]))
        if event["name"] == "run":
            step.start, step.end = event["ts"], event["ts"] + event["dur"]
        elif event["name"] == "plan":
            step.plan = event["dur"]
        elif event["name"] == "update":
            step.update = event["dur"]
    return [steps[number] for number in sorted(steps)]


def within(steps: Sequence[Step], start: float, end: float) -> list[Step]:
    """The steps that began on the worker in a span of the same clock (`time.monotonic`, in microseconds)."""
    return [step for step in steps if start <= step.start <= end]


def summarize(runs: Sequence[Sequence[Step]]) -> dict[str, float]:
    """The figures of several runs of one work together; empty where no run has a steady part."""
    gaps: list[float] = []
    steady: list[Step] = []
    for steps in runs:
        edge = int(len(steps) * EDGE)
        middle = steps[edge : len(steps) - edge]
        steady += middle
        gaps += [
            later.start - step.end for step, later in itertools.pairwise(middle) if later.number == step.number + 1
        ]
    if not gaps:
        return {}
    cpu = [step.plan + step.update for step in steady]
    return {
        "num_steps": len(steady),
        "num_gaps": len(gaps),
        "gap_us_p50": float(np.percentile(gaps, 50)),
        "gap_us_p99": float(np.percentile(gaps, 99)),
        "gap_us_max": max(gaps),
        "share_over_100_us": sum(gap > LONG_GAP_US for gap in gaps) / len(gaps),
        "step_us_p50": float(np.percentile([step.end - step.start for step in steady], 50)),
        "cpu_us_p50": float(np.percentile(cpu, 50)),
        "cpu_us_p99": float(np.percentile(cpu, 99)),
    }


def table_rows(summaries: dict[str, dict[str, float]]) -> list[list[str]]:
    """One row a work, below a head, for a Markdown table."""
    rows = [["work", "steps", "gap µs p50", "p99", "max", "over 100 µs", "step µs p50", "CPU per step µs p50", "p99"]]
    for name, figures in summaries.items():
        if not figures:
            continue
        names = ("gap_us_p50", "gap_us_p99", "gap_us_max")
        row = [name, f"{figures['num_steps']:.0f}", *(f"{figures[key]:.1f}" for key in names)]
        row += [f"{figures['share_over_100_us']:.2%}", f"{figures['step_us_p50']:.0f}"]
        rows.append(row + [f"{figures[key]:.0f}" for key in ("cpu_us_p50", "cpu_us_p99")])
    return rows


def main() -> None:
    from benchmarks.figures import markdown

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    arguments = parser.parse_args()
    print(markdown(table_rows({arguments.trace.name: summarize([read_trace(arguments.trace)])})))


if __name__ == "__main__":
    main()
