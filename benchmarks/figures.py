"""From seconds to the figures that a work is judged by, with their floors and other engines' figures beside them."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.works import Work

BASELINES = json.loads(Path(__file__).with_name("baselines.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """One run of a work."""

    seconds: float
    first_token_seconds: float | None = None
    """Until the first token of the first request; None where a side does not tell."""
    num_hit_tokens: int | None = None
    """Prompt tokens that were found in the prefix cache; None where a side does not tell."""


def _ms_per_token(work: Work, run: Run) -> float | None:
    if run.first_token_seconds is None:
        return None
    return (run.seconds - run.first_token_seconds) / (work.num_output_tokens - 1) * 1e3


def _first_token_ms(work: Work, run: Run) -> float | None:
    return None if run.first_token_seconds is None else run.first_token_seconds * 1e3


def _hit_share(work: Work, run: Run) -> float | None:
    return None if run.num_hit_tokens is None else run.num_hit_tokens / work.num_shareable_tokens * 100


FUNCTIONS: dict[str, Callable[[Work, Run], float | None]] = {
    "seconds": lambda work, run: run.seconds,
    "output tokens/s": lambda work, run: work.num_output_tokens / run.seconds,
    "input tokens/s": lambda work, run: work.num_input_tokens / run.seconds,
    "ms per output token": _ms_per_token,
    "first token ms": _first_token_ms,
    "hits, % of what is shared": _hit_share,
}
_MORE_IS_BETTER = ("output tokens/s", "input tokens/s", "hits, % of what is shared")
WORK_FIGURES = {
    "decode1": ("ms per output token", "first token ms"),
    "decode64": ("output tokens/s",),
    "prefill": ("input tokens/s",),
    "prefix": ("seconds",),
    "assistants": ("seconds", "hits, % of what is shared"),
    "tput": ("seconds", "output tokens/s"),
    "nano": ("seconds", "output tokens/s"),
    "mixed32": ("output tokens/s",),
}
"""The figures of each work, as they are quoted."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    work: str
    side: str
    name: str
    median: float
    values: list[float]
    floor: float
    """The same figure of the floor."""
    share: float
    """How near the floor is: 1 is on it, whatever the figure's direction."""
    baseline: float | None = None
    """Another engine's figure, from baselines.json or from the same run."""
    ratio: float | None = None
    """How many times as good as the baseline."""


def make_figures(
    work: Work, side: str, runs: Sequence[Run], floor: Sequence[float], baseline: dict[str, float] | None = None
) -> list[Figure]:
    """What `runs` of one side give; `floor` holds the seconds of each step, `baseline` figures by name."""
    least = Run(sum(floor), floor[0], work.num_shareable_tokens)
    figures = []
    for name in WORK_FIGURES[work.name]:
        function = FUNCTIONS[name]
        values = [value for run in runs if (value := function(work, run)) is not None]
        best = function(work, least)
        if not values or best is None:
            continue
        median = statistics.median(values)
        other = (baseline or {}).get(name)
        ratio = None if other is None else _gain(name, median, other)
        figures.append(Figure(work.name, side, name, median, values, best, _gain(name, median, best), other, ratio))
    return figures


def _gain(name: str, value: float, other: float) -> float:
    """How many times as good `value` is as `other`."""
    return value / other if name in _MORE_IS_BETTER else other / value


def offline_baseline(shape: str | None, work: str) -> dict[str, float] | None:
    figures: dict[str, float] | None = BASELINES["offline"].get(shape, {}).get(work)
    return figures


def format_table(figures: Sequence[Figure], baseline_title: str) -> str:
    """Markdown. `baseline_title` names whose figures the last columns compare with; without one they are left out."""
    has_baseline = any(figure.baseline is not None for figure in figures)
    head = ["work", "side", "figure", "median", "all", "floor", "share of the floor"]
    rows = [head + ([baseline_title, "times as good"] if has_baseline else [])]
    for figure in figures:
        row = [figure.work, figure.side, figure.name, number(figure.median), " ".join(map(number, figure.values))]
        row += [number(figure.floor), f"{figure.share:.1%}"]
        if has_baseline:
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
            row += ["" if figure.baseline is None else number(figure.baseline), ratio]
        rows.append(row)
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def number(value: float) -> str:
    """Four digits or more, without an exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 0.01 else f"{value:.6f}"


def as_json(figures: Sequence[Figure]) -> list[dict[str, object]]:
    return [asdict(figure) for figure in figures]
