"""How soon a model is served: from the start of the process to the ready line, or until `LLM(...)` has returned.

    python -m benchmarks.bench_startup --shape llama8b

Each is started `--starts` times with an empty folder for Triton's compiled kernels (cold) and as often with one that a
start before has filled (warm); medians. Beside them: the stages that a start reports, resident memory of each process
when ready, and on a GPU the memory that the plan foresaw against what the driver says is in use.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.environment import ROOT, environment
from benchmarks.figures import BASELINES, markdown
from benchmarks.shapes import SHAPES, write_model_folder
from benchmarks.started import READY, Started, serve_command
from engine_core.config.devices import probe_device
from frontend.cli.flags import make_args
from frontend.cli.resolve import Resolved, resolve

_LLM = """
import json, signal, sys
from quire import LLM
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with LLM(show_progress=True, **json.loads(sys.argv[1])):
    print("LLM is ready", flush=True)
    signal.pause()
"""
"""A program that uses the library; SIGTERM ends it."""


@dataclass(frozen=True)
class Start:
    """One start."""

    seconds: float
    stages: dict[str, float]
    resident_mib: dict[str, float]
    gpu_bytes: int | None
    """What all processes of the GPU took more than before the start."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=sorted(SHAPES))
    what.add_argument("--model", default=str(ROOT / "demo_model"), help="a model folder")
    parser.add_argument("--starts", type=int, default=3, help="of each kind")
    parser.add_argument("--ways", nargs="+", choices=["serve", "LLM"], default=["serve", "LLM"])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further settings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def command_of(way: str, settings: dict[str, object]) -> tuple[list[str], str]:
    """The command and how its ready line begins."""
    if way == "LLM":
        return [sys.executable, "-c", _LLM, json.dumps(settings)], "LLM is ready"
    return serve_command({"port": 0, **settings}), READY


def start_once(way: str, settings: dict[str, object], triton_cache: Path, device: str) -> Start:
    command, ready = command_of(way, settings)
    before = probe_device(device).available
    with Started(command, ready, env={"TRITON_CACHE_DIR": str(triton_cache)}) as started:
        in_use = before - probe_device(device).available if device == "cuda" else None  # a CPU has others beside us
        return Start(started.seconds_to_ready, started.stages(), started.resident_mib(), in_use)


def measure(way: str, settings: dict[str, object], device: str, count: int) -> dict[str, list[Start]]:
    """Cold starts, then warm ones on the last cold one's folder."""
    starts: dict[str, list[Start]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "warm"):
            for number in range(count):
                cache = Path(folder) / str(number if kind == "cold" else count - 1)
                starts[kind].append(start_once(way, settings, cache, device))
                print(f"{way}, {kind}: {starts[kind][-1].seconds:.2f} s", flush=True)
    return starts


def table(starts: dict[str, dict[str, list[Start]]], resolved: Resolved, ready_of_others: float | None) -> str:
    """A row a figure, a column a way and kind of starting."""
    columns = [(f"{way}, {kind}", group) for way, kinds in starts.items() for kind, group in kinds.items()]
    rows = [["median", *(title for title, _ in columns)]]
    rows.append(["ready after, s", *(f"{_median([s.seconds for s in group]):.2f}" for _, group in columns)])
    rows += [
        [f"stage {stage}, s", *(_cell([start.stages.get(stage) for start in group], ".1f") for _, group in columns)]
        for stage in sorted({stage for _, group in columns for start in group for stage in start.stages})
    ]
    rows += [
        [f"resident {name}, MiB", *(_cell([s.resident_mib.get(name) for s in group], ".0f") for _, group in columns)]
        for name in dict.fromkeys(name for _, group in columns for start in group for name in start.resident_mib)
    ]
    if resolved.engine.device == "cuda":
        planned = resolved.plan.fixed_bytes + resolved.plan.kv_cache_bytes
        in_use = [_median([start.gpu_bytes or 0 for start in group]) for _, group in columns]
        rows.append(["GPU memory in use, GiB", *(f"{value / 2**30:.2f}" for value in in_use)])
        rows.append(["planned, GiB", *[f"{planned / 2**30:.2f}"] * len(columns)])
        rows.append(["in use against plan", *(f"{value / planned - 1:+.2%}" for value in in_use)])
    if ready_of_others is not None:
        title = f"{BASELINES['engine']}, {BASELINES['machine'].split(',')[0]}, {BASELINES['date']}: ready after, s"
        rows.append([title, *[f"{ready_of_others:.1f}"] * len(columns)])
    return markdown(rows)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _cell(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(_median(known), form) if known else ""


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, object] = {"model": arguments.model, "device": arguments.device}
        if arguments.shape:
            settings |= {"model": str(write_model_folder(arguments.shape, Path(folder)))}
            settings |= {"load_format": "dummy", "max_model_len": 8192}
        settings.update(pair.split("=", 1) for pair in arguments.set)
        resolved = resolve(make_args(settings))
        device = resolved.engine.device
        starts = {way: measure(way, settings, device, arguments.starts) for way in arguments.ways}
    if arguments.json:
        kept = [
            {"way": way, "kind": kind, **asdict(start)}
            for way, kinds in starts.items()
            for kind, group in kinds.items()
            for start in group
        ]
        result = {**environment(), "settings": settings, "device": device, "starts": kept}
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    others = BASELINES["ready_seconds"].get(arguments.shape) if device == "cuda" else None
    print(table(starts, resolved, others))


if __name__ == "__main__":
    main()
