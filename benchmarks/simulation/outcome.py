"""From records of replicas to figures, and to curves over time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import number
from benchmarks.simulation.replica import Record

_NUM_BINS = 100
_PERCENTILES = (50, 99)


@dataclass(frozen=True)
class Outcome:
    """What came of one simulation, in seconds; pairs are median and 99th percentile, None where nothing counts."""

    seconds: float
    num_requests: int
    num_refused: int
    num_input_tokens: int
    num_output_tokens: int
    first_token: tuple[float, float] | None
    time_per_token: tuple[float, float] | None
    """Of each request, after its first token."""
    interval: tuple[float, float] | None
    """Between two tokens of a request."""
    last_token: tuple[float, float] | None
    hit_rate: float
    num_loaded_blocks: int
    """From host memory."""
    num_preemptions: int
    mean_kv_use: float
    max_kv_use: float
    num_steps: int
    busy_share: float
    """Of the GPUs' time."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Outcome":
        end = max((record.step_ends[-1] for record in records if record.step_ends), default=0.0)
        first, last = _joined(records, "first_token"), _joined(records, "last_token")
        num_output = _joined(records, "num_output_tokens")
        several = num_output > 1
        num_queried = sum(record.num_query_tokens for record in records)
        return cls(
            seconds=end,
            num_requests=len(first),
            num_refused=sum(record.num_refused for record in records),
            num_input_tokens=int(_joined(records, "num_input_tokens").sum()),
            num_output_tokens=int(num_output.sum()),
            first_token=_percentiles(first),
            time_per_token=_percentiles((last - first)[several] / (num_output[several] - 1)),
            interval=_percentiles(_intervals(records)),
            last_token=_percentiles(last),
            hit_rate=sum(record.num_hit_tokens for record in records) / max(1, num_queried),
            num_loaded_blocks=sum(record.num_loaded_blocks for record in records),
            num_preemptions=sum(record.num_preemptions for record in records),
            mean_kv_use=float(np.mean([_mean_kv_use(record, end) for record in records])),
            max_kv_use=max(max(record.num_owned, default=0) / record.num_blocks for record in records),
            num_steps=sum(len(record.step_ends) for record in records),
            busy_share=sum(record.busy_seconds for record in records) / len(records) / end if end else 0.0,
        )

    @property
    def output_rate(self) -> float:
        return self.num_output_tokens / self.seconds if self.seconds else 0.0

    @property
    def input_rate(self) -> float:
        return self.num_input_tokens / self.seconds if self.seconds else 0.0

    def row(self, title: str) -> list[str]:
        """Under `HEAD`."""
        return [
            title,
            number(self.seconds),
            number(self.output_rate),
            number(self.input_rate),
            _pair(self.first_token, 1e3),
            _pair(self.time_per_token, 1e3),
            _pair(self.interval, 1e3),
            _pair(self.last_token, 1.0),
            f"{self.hit_rate:.1%}",
            f"{self.num_preemptions:,}",
            f"{self.mean_kv_use:.1%} / {self.max_kv_use:.1%}",
            f"{self.num_steps:,}",
            f"{self.busy_share:.0%}",
            f"{self.num_refused:,}",
        ]


HEAD = [
    "simulated",
    "s",
    "output tokens/s",
    "input tokens/s",
    "TTFT p50 / p99, ms",
    "TPOT p50 / p99, ms",
    "ITL p50 / p99, ms",
    "E2E p50 / p99, s",
    "cache hits",
    "preemptions",
    "KV use mean / max",
    "steps",
    "GPU busy",
    "refused",
]


@dataclass(frozen=True)
class Curve:
    """A median and a 99th percentile (or one figure twice) over time; points are centres of equal spans, in seconds."""

    times: list[float]
    median: list[float]
    high: list[float]


@dataclass(frozen=True)
class Curves:
    """One simulation over time. A span in which nothing counts has no point."""

    first_token: Curve
    """By when it came."""
    interval: Curve
    """By the end of the step."""
    kv_use: Curve
    """Mean and maximum over replicas at the end of each span."""

    @classmethod
    def of(cls, records: Sequence[Record], end: float) -> "Curves":
        """Over `end` seconds."""
        edges = np.linspace(0.0, end, _NUM_BINS + 1)
        arrivals, first = _joined(records, "arrivals"), _joined(records, "first_token")
        ends = np.concatenate([np.repeat(r.step_ends, [len(each) for each in r.intervals]) for r in records])
        use = np.array([_kv_use_at(record, edges[1:]) for record in records])
        centres = ((edges[1:] + edges[:-1]) / 2).tolist()
        kv_use = Curve(centres, use.mean(axis=0).tolist(), use.max(axis=0).tolist())
        return cls(_binned(arrivals + first, first, edges), _binned(ends, _intervals(records), edges), kv_use)


def _joined(records: Sequence[Record], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(record, name), np.float64) for record in records])


def _intervals(records: Sequence[Record]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(part for record in records for part in record.intervals)])


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    if len(values) == 0:
        return None
    median, high = np.percentile(values, _PERCENTILES).tolist()
    return median, high


def _pair(values: tuple[float, float] | None, factor: float) -> str:
    return "" if values is None else " / ".join(number(value * factor) for value in values)


def _mean_kv_use(record: Record, end: float) -> float:
    """Over time: what one step leaves holds until the next one ends."""
    if not record.step_ends or end == 0.0:
        return 0.0
    spans = np.diff([*record.step_ends, end])
    return float((np.array(record.num_owned) * spans).sum() / end / record.num_blocks)


def _kv_use_at(record: Record, times: np.ndarray) -> np.ndarray:
    steps = np.searchsorted(record.step_ends, times, side="right")
    return np.array([0, *record.num_owned])[steps] / record.num_blocks


def _binned(times: np.ndarray, values: np.ndarray, edges: np.ndarray) -> Curve:
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    borders = np.searchsorted(times, edges, side="left")
    borders[-1] = len(times)
    curve = Curve([], [], [])
    for first, last, low, high in zip(borders[:-1], borders[1:], edges[:-1], edges[1:], strict=True):
        percentiles = _percentiles(values[first:last])
        if percentiles is not None:
            curve.times.append(float(low + high) / 2)
            curve.median.append(percentiles[0])
            curve.high.append(percentiles[1])
    return curve
