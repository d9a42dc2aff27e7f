"""Throughput and latency without HTTP: Quire's `LLM` on named works, their floors, and a peer on the same prompts.

    python -m benchmarks.bench_offline --peer transformers
    python -m benchmarks.bench_offline --shape llama8b --works decode1 decode64 prefill prefix tput nano --trace
    python -m benchmarks.bench_offline --shape qwen06b --works nano --peer vllm --json nano.json

`--shape` measures a published model's shape with random weights (shapes.py), `--model` a folder. Each figure stands
beside its floor: what the work would take at the read bandwidth and matrix rate that roofline.py measures in the same
run, before any engine holds memory (floors.py has the formula). On a CPU the sides take turns, so that a slow minute of
the machine hits all of them; on a GPU each has the whole of it, one after the other. Prints a line per run and a table
at the end; `--json` keeps everything.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import step_gaps
from benchmarks.environment import environment
from benchmarks.figures import BASELINES, Figure, Run, as_json, format_table, make_figures, markdown, offline_baseline
from benchmarks.floors import Ceilings, Costs, work_floor
from benchmarks.offline_sides import PeerError, PeerProcess, Quire, Side
from benchmarks.roofline import ROOT, measure_apart
from benchmarks.shapes import SHAPES, TITLES, write_model_folder
from benchmarks.works import WARM_UP, WORKS, make_work
from frontend.cli.flags import make_args
from frontend.cli.resolve import Resolved, resolve

SHAPE_SETTINGS = {"load_format": "dummy", "max_model_len": 8192}
Runs = dict[tuple[str, str], list[Run]]
"""By work and side."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help="a model folder (default: the demo model)")
    what.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--works", nargs="+", default=["mixed32"], choices=sorted(WORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-threads", type=int, default=0, help="on a CPU, of every side; 0: each side's choice")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further settings of `LLM`")
    parser.add_argument("--peer", choices=["transformers", "vllm"], help="another engine, on the same prompts")
    parser.add_argument("--trace", action="store_true", help="report the gaps between steps from the engine's timeline")
    parser.add_argument("--scale", type=int, default=1, help="divides counts and lengths, for trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where everything measured is written")
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The settings of `LLM`, the model among them."""
    settings: dict[str, Any] = {
        "model": arguments.model or str(ROOT / "demo_model"),
        "device": arguments.device,
        "dtype": arguments.dtype,
        "num_threads": arguments.num_threads,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "seed": 0,
    }
    if arguments.shape:
        settings.update(SHAPE_SETTINGS, model=str(write_model_folder(arguments.shape, folder)))
    if arguments.trace:
        settings["trace"] = str(folder / "trace.json")
    settings.update(pair.split("=", 1) for pair in arguments.set)
    return settings


def peer_options(settings: dict[str, Any], resolved: Resolved) -> dict[str, object]:
    """The same model, dtype, device and limits for another engine."""
    return {
        "model": settings["model"],
        "device": resolved.engine.device,
        "dtype": resolved.engine.dtype,
        "load_format": resolved.engine.load_format,
        "max_model_len": resolved.engine.scheduler.max_model_len,
        "gpu_memory_utilization": settings["gpu_memory_utilization"],
        "num_threads": settings["num_threads"],
    }


def measure(sides: list[Side], arguments: argparse.Namespace, runs: Runs) -> None:
    """All works on sides that are up: one small run that does not count, then the repeats, sides in turn."""
    for work in arguments.works:
        for side in sides:
            for name in side.names:
                side.run(name, work, WARM_UP, max(8, arguments.scale))
        for repeat in range(arguments.repeats):
            for side in sides:
                for name in side.names:
                    run = side.run(name, work, repeat, arguments.scale)
                    runs.setdefault((work, name), []).append(run)
                    print(f"{work}, {name}: {run.seconds:.3f} s", flush=True)


def measure_all(
    arguments: argparse.Namespace, settings: dict[str, Any], resolved: Resolved, runs: Runs, ready: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Fills `runs` and the seconds until each side was `ready`; returns what lay between our steps. Raises `PeerError`,
    with what was measured before in place."""
    quire_settings = {name: value for name, value in settings.items() if name != "model"}
    starts = [lambda: Quire(settings["model"], resolved.engine.model.vocab_size, quire_settings)]
    if arguments.peer:
        starts.append(lambda: PeerProcess(arguments.peer, peer_options(settings, resolved)))  # type: ignore[arg-type, return-value]
    groups = [[start] for start in starts] if resolved.engine.device == "cuda" else [starts]
    spans: list[tuple[str, float, float]] = []
    for group in groups:
        with contextlib.ExitStack() as stack:
            sides: list[Side] = []
            for start in group:
                sides.append(start())
                stack.callback(sides[-1].close)
                ready[sides[-1].names[0].split(",")[0]] = sides[-1].ready_seconds
            measure(sides, arguments, runs)
            spans += [span for side in sides if isinstance(side, Quire) for span in side.spans]
    return gaps_of(settings, spans, arguments.works)


def gaps_of(
    settings: dict[str, Any], spans: list[tuple[str, float, float]], works: list[str]
) -> dict[str, dict[str, float]]:
    """The timeline's figures by work; it is written when the engine ends."""
    if "trace" not in settings:
        return {}
    steps = step_gaps.read_trace(Path(settings["trace"]))
    runs = {work: [step_gaps.within(steps, begin, end) for name, begin, end in spans if name == work] for work in works}
    return {work: step_gaps.summarize(runs[work]) for work in works}


def all_figures(arguments: argparse.Namespace, resolved: Resolved, runs: Runs, ceilings: Ceilings) -> list[Figure]:
    """Every work's figures: ours compare with the peer where one ran, else with what is kept of other engines."""
    engine = resolved.engine
    costs = Costs.of(engine.model, engine.dtype)
    limits = engine.scheduler.max_num_seqs, engine.scheduler.max_num_batched_tokens
    figures: list[Figure] = []
    for name in arguments.works:
        work = make_work(name, engine.model.vocab_size, scale=arguments.scale)
        floor = work_floor(work, costs, ceilings, *limits)
        sides = [side for measured, side in runs if measured == name]
        if not sides:
            continue
        peers = [figure for side in sides[1:] for figure in make_figures(work, side, runs[name, side], floor)]
        baseline = {figure.name: figure.median for figure in reversed(peers)}  # the first peer's win
        if not arguments.peer and engine.device == "cuda" and arguments.scale == 1:
            baseline = offline_baseline(arguments.shape, name) or {}
        figures += make_figures(work, sides[0], runs[name, sides[0]], floor, baseline) + peers
    return figures


def main() -> None:
    arguments = parse_arguments()
    if arguments.peer and importlib.util.find_spec(arguments.peer) is None:
        sys.exit(f"bench_offline: --peer {arguments.peer}: this Python has no package {arguments.peer}.")
    runs: Runs = {}
    ready: dict[str, float] = {}
    gaps: dict[str, dict[str, float]] = {}
    failure = None
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_of(arguments, Path(temporary))
        resolved = resolve(make_args(settings))
        roofline = measure_apart(resolved.engine.device)
        print(json.dumps({"roofline": roofline}), flush=True)
        try:
            gaps = measure_all(arguments, settings, resolved, runs, ready)
        except PeerError as error:
            failure = f"bench_offline: {error}"
    ceilings = Ceilings(float(roofline["read_bytes_per_second"]), float(roofline["flops_per_second"]))
    figures = all_figures(arguments, resolved, runs, ceilings)
    if arguments.json:
        result = {
            **environment(),
            "model": TITLES.get(arguments.shape, arguments.shape or settings["model"]),
            "settings": settings,
            "scale": arguments.scale,
            "roofline": roofline,
            "ready_seconds": ready,
            "figures": as_json(figures),
            "runs": [{"work": work, "side": side, "runs": [vars(r) for r in runs[work, side]]} for work, side in runs],
            "steps": gaps,
            "failure": failure,
        }
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if gaps:
        print(markdown(step_gaps.table_rows(gaps)), end="\n\n")
    kept = f"{BASELINES['engine']}, {BASELINES['machine'].split(',')[0]}, {BASELINES['date']}"
    print(format_table(figures, f"{arguments.peer}, this run" if arguments.peer else kept), flush=True)
    if failure:
        sys.exit(failure)


if __name__ == "__main__":
    main()
