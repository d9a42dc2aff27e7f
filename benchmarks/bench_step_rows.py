"""How long decode steps take with 1 to 64 sequences: one more must never make a step shorter.

    python -m benchmarks.bench_step_rows --shape llama8b --context 1088      # on a GPU, about half a minute

Where a product's kernel changes with the number of rows, a bad choice shows as a step that is shorter with more of
them. Exit code 1 where a step is shorter by more than `--tolerance` than one with fewer sequences.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.figures import markdown
from benchmarks.profile_step import Profiler, Steps, time_steps
from benchmarks.shapes import SHAPES, write_model_folder

NUM_STEPS = 40


def largest_fall(times: dict[int, float]) -> tuple[float, int, int]:
    """(share, rows, more rows): by how much of it a step is longer than one with more rows, at most."""
    falls = [(1 - times[more] / times[few], few, more) for more in times for few in times if few < more]
    return max(falls, default=(0.0, 0, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama8b")
    parser.add_argument("--context", type=int, default=1088, help="tokens of each sequence")
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(1, 65)), metavar="N")
    parser.add_argument("--tolerance", type=float, default=0.02, help="share of a step's time that is noise")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        profiler = Profiler(str(write_model_folder(arguments.shape, Path(folder))), max(arguments.rows))
        times = {}
        for num_rows in sorted(arguments.rows):
            steps = Steps.parse(f"decode:{num_rows}:{arguments.context}")
            times[num_rows] = time_steps(profiler, steps, NUM_STEPS).period
        profiler.runner.close()
    fall, few, more = largest_fall(times)
    print(markdown([["rows", "us a step"], *([str(rows), f"{period:.0f}"] for rows, period in times.items())]))
    print(f"{arguments.shape}: largest fall {fall:.1%}, from {few} rows to {more}")
    if arguments.json is not None:
        data = {
            **environment(),
            "shape": arguments.shape,
            "context": arguments.context,
            "us_a_step": times,
            "fall": fall,
        }
        arguments.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return int(fall > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
