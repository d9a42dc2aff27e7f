"""One table of all that scripts/gpu_check.sh has run: stages first, then the figures of those that have some.

    python -m benchmarks.gpu_report DIR

Exit code 1 where a stage failed, or none ran.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import BASELINES, markdown, number

HEAD = ["stage", "what", "figure", "measured", "floor or ceiling", "share"]


def stage_rows(folder: Path) -> tuple[list[list[str]], bool]:
    """A row a stage, and whether all of them ended well."""
    lines = (folder / "stages.tsv").read_text(encoding="utf-8").splitlines()
    stages = [line.split("\t") for line in lines]
    rows = [[name, "", "result", result, "", "", "", ""] for name, result, _ in stages]
    for row, (_, _, seconds) in zip(rows, stages, strict=True):
        row[3] += f", {seconds} s"
    return rows, bool(stages) and all(result == "ok" for _, result, _ in stages)


def offline_rows(stage: str, data: dict[str, Any]) -> Iterator[list[str]]:
    for figure in data["figures"]:
        other = [] if figure["baseline"] is None else [number(figure["baseline"]), f"{figure['ratio']:.2f}"]
        row = [stage, f"{figure['work']}, {figure['side']}", figure["name"], number(figure["median"])]
        yield [*row, number(figure["floor"]), f"{figure['share']:.1%}", *other]
    for work, steps in data["steps"].items():
        if steps:
            gaps = f"{steps['gap_us_p50']:.0f} / {steps['gap_us_p99']:.0f} / {steps['share_over_100_us']:.2%}"
            yield [stage, work, "gap between steps, µs p50 / p99 / over 100 µs", gaps]
            yield [stage, work, "CPU per step, µs p50", f"{steps['cpu_us_p50']:.0f}"]
    yield from ([stage, side, "ready after, s", number(seconds)] for side, seconds in data["ready_seconds"].items())


def kernel_rows(stage: str, data: dict[str, Any]) -> Iterator[list[str]]:
    for figure in data["figures"]:
        unit, scale = ("TFLOP/s", 1e12) if figure["bound"] == "matmul" else ("GB/s", 1e9)
        row = [stage, f"{figure['kernel']}, {figure['case']}", f"{unit} (µs)"]
        row.append(f"{number(figure['rate'] / scale)} ({figure['seconds'] * 1e6:.1f})")
        yield [*row, number(figure["ceiling"] / scale), f"{figure['share']:.1%}"]


def serving_rows(stage: str, data: dict[str, Any]) -> Iterator[list[str]]:
    for figure in data["figures"]:
        what = "all at once" if figure["rate"] == "inf" else f"{figure['rate']} per s"
        for name, title in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("itl_ms", "ITL")):
            yield [stage, what, f"{title} p50 / p99, ms", " / ".join(map(number, figure[name]))]
        yield [stage, what, "output tokens/s", number(figure["output_tokens_per_second"])]
        yield [stage, what, "failed", str(figure["num_failed"])]


def startup_rows(stage: str, data: dict[str, Any]) -> Iterator[list[str]]:
    groups: dict[str, list[float]] = {}
    for start in data["starts"]:
        groups.setdefault(f"{start['way']}, {start['kind']}", []).append(start["seconds"])
    for what, seconds in groups.items():
        yield [stage, what, "ready after, s", number(statistics.median(seconds))]


def step_rows(stage: str, data: dict[str, Any]) -> Iterator[list[str]]:
    times = {int(rows): period for rows, period in data["us_a_step"].items()}
    few, more = min(times), max(times)
    yield [
        stage,
        f"{few} and {more} sequences of {data['context']} tokens",
        "µs a step",
        f"{times[few]:.0f}, {times[more]:.0f}",
    ]
    yield [stage, "one more sequence", "shorter by at most", f"{data['fall']:.1%}"]


ROWS = {
    "rows": step_rows,
    "offline": offline_rows,
    "kernels": kernel_rows,
    "serving": serving_rows,
    "startup": startup_rows,
}
"""By the first word of a stage's name."""


def report(folder: Path) -> tuple[str, bool]:
    """The table, and whether all is well."""
    rows, is_well = stage_rows(folder)
    for name in [row[0] for row in rows]:
        file = folder / f"{name}.json"
        if file.exists():
            rows += ROWS[name.split("-")[0]](name, json.loads(file.read_text(encoding="utf-8")))
    head = [*HEAD, f"{BASELINES['engine']}, {BASELINES['machine'].split(',')[0]}, {BASELINES['date']}", "times as good"]
    return markdown([head, *(row + [""] * (len(head) - len(row)) for row in rows)]), is_well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    text, is_well = report(parser.parse_args().folder)
    print(text)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
