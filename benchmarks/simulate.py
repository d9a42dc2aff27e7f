"""What a schedule, a cache or a number of replicas would do: the real scheduler on a modelled GPU, in virtual time.

    python -m benchmarks.simulate --shape llama8b --rate 8 --input 100-2000 --output 100-500 --plot out.svg
    python -m benchmarks.simulate --shape qwen06b --work tput
    python -m benchmarks.simulate --model FOLDER --trace trace.jsonl --replicas 32 --router prefix
    python -m benchmarks.simulate --clients 8 --priorities 3 --compare scheduling_policy=fcfs,priority,fair
    python -m benchmarks.simulate --check

Requests are drawn (a Poisson process), those of a named work (works.py), or a trace: a JSONL file whose lines have
`timestamp` (ms), `input_length`, `output_length` and, for prompts that begin alike, `hash_ids`, one for each 512 tokens
of the prompt, as public traces do; `priority` and `share_key` may be there too. `--set` and `--compare` take the names
of the server's settings; `--compare` also takes replicas, router, rate and gpu, and prints one row a value. There is no
GPU here, no process of the engine and no model: simulation/cost_model.py says how long a step takes, `--check` how far
it was off where something was measured. No HTTP and no text are modelled. The same arguments give the same figures.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from benchmarks.environment import environment
from benchmarks.figures import markdown
from benchmarks.shapes import SHAPES, write_model_folder
from benchmarks.simulation import check
from benchmarks.simulation.fleet import Simulation, run_all
from benchmarks.simulation.gpus import Gpu, find_gpu
from benchmarks.simulation.outcome import HEAD, Curves, Outcome
from benchmarks.simulation.plot import plot
from benchmarks.simulation.routers import ROUND_ROBIN, ROUTERS
from benchmarks.simulation.trace import LengthRange, PoissonTrace, TraceError, TraceRequest, read_trace, work_trace
from benchmarks.works import WORKS, make_work
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import EngineConfig
from engine_core.config.errors import ConfigError
from frontend.cli.flags import make_args
from frontend.cli.resolve import read_model, resolve_engine

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130
"""128 and the signal's number, as shells count."""
MAX_REPLICAS = 4096
SETTINGS: dict[str, Any] = {"load_format": "dummy", "max_num_waiting": 2**31 - 1}
"""Of every simulation unless `--set` says otherwise: no weights are there, and a queue is measured, not refused."""
SHAPE_SETTINGS = {"max_model_len": 8192}
"""As bench_offline.py measures shapes."""
_ANY_MACHINE = DeviceMemory("cpu", "any", 2**60, 2**60)
"""Around the GPU: host memory is what `kv_offload_gib` says."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"simulate: {message}\n")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", help="a folder with a config.json and a tokenizer; weights are not looked at")
    model.add_argument("--shape", choices=sorted(SHAPES), default="llama8b")
    parser.add_argument("--gpu", default="h200", help="h200, h100, or a JSON file (simulation/gpus.py has the fields)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the server")
    parser.add_argument("--replicas", default="1", metavar="N")
    parser.add_argument("--router", default=ROUND_ROBIN, help=f"one of {', '.join([ROUND_ROBIN, *ROUTERS])}")
    parser.add_argument("--compare", action="append", default=[], metavar="NAME=VALUE,...", help="one row a value")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trace", type=Path, metavar="FILE.jsonl")
    source.add_argument("--work", choices=sorted(WORKS))
    drawn = parser.add_argument_group("drawn requests, where there is neither a trace nor a work")
    drawn.add_argument("--requests", type=_count, default=1000, metavar="N")
    drawn.add_argument("--rate", default="8", metavar="X", help="per second, on average; inf: all at once")
    drawn.add_argument("--input", type=_lengths, default="1024", metavar="N|A-B", help="tokens, uniformly")
    drawn.add_argument("--output", type=_lengths, default="128", metavar="N|A-B")
    drawn.add_argument(
        "--prefixes", type=_count_or_none, default=0, metavar="N", help="system prompts before the input"
    )
    drawn.add_argument("--prefix-tokens", type=_count, default=2048, metavar="N")
    drawn.add_argument("--clients", type=_count, default=1, metavar="N", help="client k sends 1/k of the first's")
    drawn.add_argument("--priorities", type=_count, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=_count, metavar="N", help="default: one a core")
    parser.add_argument("--check", action="store_true", help="compare with what was measured on this GPU, and stop")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    return parser.parse_args(argv)


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or not least <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


def _count_or_none(text: str) -> int:
    return _count(text, 0)


def _lengths(text: str) -> LengthRange:
    try:
        return LengthRange.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from None


def settings_of(pairs: list[str], flag: str) -> dict[str, str]:
    """Raises `ConfigError` for what is not NAME=VALUE."""
    settings: dict[str, str] = {}
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"{flag} {pair}: it must be NAME=VALUE.")
        name, value = pair.split("=", 1)
        if name in settings:
            raise ConfigError(f"{flag} {pair}: {name} is given twice.")
        settings[name] = value
    return settings


def variants(pairs: list[str]) -> list[dict[str, str]]:
    """Each combination of the values of `--compare`; one empty one where nothing is compared."""
    choices = settings_of(pairs, "--compare")
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*map(_split, choices.values()))]


def _split(values: str) -> list[str]:
    return values.split(",")


def engine_config(settings: dict[str, Any], gpu: Gpu) -> EngineConfig:
    """What `quire serve` would run on that GPU. Raises `ConfigError`."""
    with tempfile.TemporaryDirectory() as folder:
        shape = settings.pop("shape", None)
        if shape is not None:
            settings = {**SHAPE_SETTINGS, **settings, "model": str(write_model_folder(shape, Path(folder)))}
        args = make_args({**SETTINGS, **settings})
        device = DeviceMemory("cuda", gpu.name, gpu.memory_bytes, gpu.memory_bytes)
        return resolve_engine(args, read_model(args), device, machine=_ANY_MACHINE)[0]


class Simulations:
    """Makes a simulation for each variant; a trace that several of them share is read once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._traces: dict[object, list[TraceRequest]] = {}

    def make(self, variant: dict[str, str]) -> Simulation:
        """Raises `ConfigError` or `TraceError`."""
        arguments = self._arguments
        names = {name: getattr(arguments, name) for name in ("replicas", "router", "rate", "gpu")}
        chosen = {name: variant.get(name, value) for name, value in names.items()}
        settings: dict[str, Any] = {"model": arguments.model} if arguments.model else {"shape": arguments.shape}
        settings.update(settings_of(arguments.set, "--set"))
        settings.update({name: value for name, value in variant.items() if name not in names})
        gpu = find_gpu(chosen["gpu"])
        engine = engine_config(settings, gpu)
        if chosen["router"] not in (ROUND_ROBIN, *ROUTERS):
            raise ConfigError(f"--router {chosen['router']}: it must be one of {', '.join([ROUND_ROBIN, *ROUTERS])}.")
        if not chosen["replicas"].isdecimal() or not 1 <= int(chosen["replicas"]) <= MAX_REPLICAS:
            raise ConfigError(f"--replicas {chosen['replicas']}: it must be a number from 1 to {MAX_REPLICAS}.")
        if "rate" in variant and (arguments.trace or arguments.work):
            raise ConfigError("--compare rate=...: the requests of a trace or a work have their times already.")
        title = ", ".join(f"{name} {value}" for name, value in variant.items()) or self.source
        requests = self._requests(chosen["rate"], engine.model.vocab_size)
        return Simulation(title, engine, gpu, requests, int(chosen["replicas"]), chosen["router"])

    @property
    def source(self) -> str:
        """What drives the simulation, for people."""
        arguments = self._arguments
        return str(arguments.trace or arguments.work or f"{arguments.requests:,} drawn requests")

    def _requests(self, rate: str, vocab_size: int) -> list[TraceRequest]:
        arguments = self._arguments
        key = None if arguments.trace or arguments.work else rate
        if key not in self._traces:
            if arguments.trace:
                self._traces[key] = read_trace(arguments.trace)
            elif arguments.work:
                self._traces[key] = work_trace(make_work(arguments.work, vocab_size))
            else:
                self._traces[key] = self._draw(rate)
        return self._traces[key]

    def _draw(self, rate: str) -> list[TraceRequest]:
        arguments = self._arguments
        try:
            per_second = float(rate)
        except ValueError:
            per_second = math.nan
        if not per_second > 0:
            raise ConfigError(f"--rate {rate}: it must be a positive number, or inf.")
        return PoissonTrace(
            num_requests=arguments.requests,
            rate=per_second,
            num_input=arguments.input,
            num_output=arguments.output,
            num_prefixes=arguments.prefixes,
            prefix_length=arguments.prefix_tokens,
            num_clients=arguments.clients,
            num_priorities=arguments.priorities,
        ).make(arguments.seed)


def warn_of_refused(simulation: Simulation) -> None:
    """Requests that the server would refuse are left out; the first is named. Raises `ConfigError` if that is all."""
    engine, requests = simulation.engine, simulation.requests
    limit = engine.longest_request()
    refused = [each for each in requests if each.num_input_tokens + each.num_output_tokens > limit]
    if not refused:
        return
    first = refused[0]
    message = (
        f"{simulation.title}: {len(refused):,} of {len(requests):,} requests have more than the {limit:,} tokens that "
        f"the engine takes and are refused; the first is {first.origin} "
        f"({first.num_input_tokens:,} + {first.num_output_tokens:,})."
    )
    if len(refused) == len(requests):
        raise ConfigError(message)
    print(f"simulate: {message}", file=sys.stderr)


def run(arguments: argparse.Namespace) -> None:
    """Raises `ConfigError` or `TraceError`."""
    for name in ("json", "plot"):
        path = getattr(arguments, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{name} {path}: there is no folder {path.parent}.")
        if path is not None and path.is_dir():
            raise ConfigError(f"--{name} {path}: that is a folder; name a file in it.")
    if arguments.check:
        gpu = find_gpu(arguments.gpu)
        print(check.table(check.compare(arguments.gpu, gpu, lambda shape: engine_config({"shape": shape}, gpu))))
        return
    simulations = Simulations(arguments)
    made = [simulations.make(variant) for variant in variants(arguments.compare)]
    for simulation in made:
        warn_of_refused(simulation)
    total = sum(len(simulation.requests) for simulation in made)
    # Drawn on a terminal only, as the progress of a start.
    with tqdm(total=total, desc="Simulating", unit=" requests", disable=None, leave=False, file=sys.stderr) as bar:
        records = run_all(made, bar.update, arguments.processes)
    outcomes = [Outcome.of(each) for each in records]
    print(markdown([HEAD, *(outcome.row(each.title) for each, outcome in zip(made, outcomes, strict=True))]))
    if not (arguments.json or arguments.plot):
        return
    end = max(outcome.seconds for outcome in outcomes)
    curves = [Curves.of(each, end) for each in records]
    if arguments.json:
        rows = [
            {"title": simulation.title, **asdict(outcome), "curves": asdict(curve)}
            for simulation, outcome, curve in zip(made, outcomes, curves, strict=True)
        ]
        result = {**environment(), "source": simulations.source, "simulations": rows}
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if arguments.plot:
        named = [(simulation.title, curve) for simulation, curve in zip(made, curves, strict=True)]
        title = f"{arguments.model or arguments.shape} on {made[0].gpu.name}: {simulations.source}"
        arguments.plot.write_text(plot(title, named, end), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except (ConfigError, TraceError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        print("simulate: interrupted, nothing was written.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
