"""HTTP serving under load: streamed `/v1/completions` of random token ids, arriving as a Poisson process.

    python -m benchmarks.bench_serving --shape qwen06b --rates 8 inf
    python -m benchmarks.bench_serving --url http://127.0.0.1:8000/v1 --served-model NAME --vocab-size 32000

Without `--url` it starts `quire serve` on a shape (shapes.py) or a model folder, and ends it with SIGTERM. Arrivals and
prompts are seeded; `inf` means all at once. The load comes from client processes of its own (load_client.py).

Per request: TTFT is the time from sending to the first data with text; TPOT the time from there to the last over the
tokens between; ITL the times between two data with text (of all requests together). Output tokens count over the time
from the first send to the last token.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.parse
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.environment import ROOT, environment, process_environment
from benchmarks.figures import BASELINES, markdown
from benchmarks.load_client import Answer, Load
from benchmarks.shapes import SHAPES, write_model_folder
from benchmarks.started import Started, serve_command
from engine_core.config.model_config import load_model_config
from frontend.cli.flags import make_args
from frontend.cli.resolve import resolve


@dataclass(frozen=True)
class Figures:
    """What one load gave. Pairs are p50 and p99."""

    rate: str
    ttft_ms: tuple[float, float]
    tpot_ms: tuple[float, float]
    itl_ms: tuple[float, float]
    output_tokens_per_second: float
    events_per_token: float
    num_failed: int
    errors: list[str]
    client_cpu_share: float
    """Of the busiest client process: near 1 it is the client that is measured."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=sorted(SHAPES), default="qwen06b")
    what.add_argument("--model", type=Path, help="a model folder")
    what.add_argument("--url", help="of a server that runs already, with /v1")
    parser.add_argument("--served-model", help="with --url: the model's name there")
    parser.add_argument("--vocab-size", type=int, help="with --url")
    parser.add_argument("--rates", nargs="+", default=["8", "inf"], help="requests per second; inf: all at once")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--input-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one load")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--frontends", type=int, default=1, help="HTTP processes of the server")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further settings of the server")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def arrival_offsets(rate: str, count: int, seed: str) -> list[float]:
    """Seconds after the beginning of each request; the first arrives at once."""
    if rate == "inf":
        return [0.0] * count
    rng = random.Random(seed)
    offsets = [0.0]
    while len(offsets) < count:
        offsets.append(offsets[-1] + rng.expovariate(float(rate)))
    return offsets


def offer(load: Load, offsets: list[float], num_clients: int) -> tuple[list[Answer], float]:
    """Runs the load from several client processes; returns the answers and the largest share of a core of them."""
    processes = []
    try:
        for first in range(num_clients):
            mine = dict(list(enumerate(offsets))[first::num_clients])
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load_client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=process_environment(),
                text=True,
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps({**msgspec.to_builtins(load), "offsets": mine}) + "\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        begin = time.monotonic() + 0.2
        replies = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{begin}\n")
            process.stdin.flush()
        for process in processes:
            output, _ = process.communicate(timeout=load.timeout + 60)
            replies.append(json.loads(output))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    answers = [Answer(**answer) for reply in replies for answer in reply["answers"]]
    return answers, max(reply["cpu_share"] for reply in replies)


def summarize(rate: str, answers: list[Answer], num_out: int, client_cpu_share: float) -> Figures:
    """An answer with an error, or of another length than asked for, has failed and counts nowhere else."""
    good = [answer for answer in answers if answer.error is None and answer.num_tokens == num_out]
    errors = sorted({answer.error or f"{answer.num_tokens} tokens" for answer in answers if answer not in good})
    if not good:
        raise RuntimeError(f"No request was answered: {'; '.join(errors)}")
    gaps = [gap for answer in good for gap in np.diff(answer.arrivals).tolist()]
    seconds = max(answer.arrivals[-1] for answer in good) - min(answer.sent for answer in good)
    per_token = [(answer.arrivals[-1] - answer.arrivals[0]) / max(1, num_out - 1) for answer in good]
    return Figures(
        rate=rate,
        ttft_ms=_percentiles([answer.arrivals[0] - answer.sent for answer in good]),
        tpot_ms=_percentiles(per_token),
        itl_ms=_percentiles(gaps or [0.0]),
        output_tokens_per_second=len(good) * num_out / seconds,
        events_per_token=sum(answer.num_events for answer in good) / (len(good) * num_out),
        num_failed=len(answers) - len(good),
        errors=errors,
        client_cpu_share=client_cpu_share,
    )


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    return float(np.percentile(seconds, 50)) * 1e3, float(np.percentile(seconds, 99)) * 1e3


def measure(arguments: argparse.Namespace, url: str, model: str, vocab_size: int) -> list[Figures]:
    """All loads, after a small one that does not count."""
    address = urllib.parse.urlsplit(url)
    assert address.hostname is not None
    load = Load(
        host=address.hostname,
        port=address.port or 80,
        model=model,
        vocab_size=vocab_size,
        num_in=arguments.input_tokens,
        num_out=arguments.output_tokens,
        seed="warm-up",
        offsets={},
        timeout=arguments.timeout,
    )
    offer(load, [0.0] * min(8, arguments.requests), 1)
    figures = []
    for number, rate in enumerate(arguments.rates):
        load.seed = f"load {number}"
        offsets = arrival_offsets(rate, arguments.requests, load.seed)
        answers, share = offer(load, offsets, arguments.clients)
        figures.append(summarize(rate, answers, arguments.output_tokens, share))
        print(json.dumps(asdict(figures[-1])), flush=True)
    return figures


def table(figures: list[Figures], baseline: dict[str, dict[str, object]]) -> str:
    """One row a load, and below it what is kept of another engine under the same load."""
    rows = [["side", "rate per s", "TTFT p50 / p99 ms", "TPOT p50 / p99 ms", "ITL p50 / p99 ms", "output tokens/s"]]
    rows[0] += ["events per token", "failed", "busiest client, share of a core"]
    for each in figures:
        own = ["quire", *_cells(each.rate, asdict(each)), f"{each.events_per_token:.2f}", str(each.num_failed)]
        rows.append([*own, f"{each.client_cpu_share:.0%}"])
        if each.rate in baseline:
            title = f"{BASELINES['engine']}, {BASELINES['machine'].split(',')[0]}, {BASELINES['date']}"
            rows.append([title, *_cells(each.rate, baseline[each.rate]), "", "", ""])
    return markdown(rows)


def _cells(rate: str, values: dict[str, object]) -> list[str]:
    pairs = [values[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")]
    return [
        "all at once" if rate == "inf" else rate,
        *(f"{p50:,.4g} / {p99:,.4g}" for p50, p99 in pairs),  # type: ignore[misc]  # pairs of numbers
        f"{values['output_tokens_per_second']:,.0f}",
    ]


def main() -> None:
    arguments = parse_arguments()
    baseline = {}
    report: list[str] = []
    with contextlib.ExitStack() as stack:
        if arguments.url:
            url, name, vocab_size = arguments.url, arguments.served_model, arguments.vocab_size
        else:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            settings: dict[str, object] = {"device": arguments.device, "frontends": arguments.frontends, "port": 0}
            folder = arguments.model or write_model_folder(arguments.shape, temporary)
            if arguments.model is None:
                settings |= {"load_format": "dummy", "max_model_len": 8192}
            settings.update(pair.split("=", 1) for pair in arguments.set)
            device = resolve(make_args({"model": str(folder), **settings})).engine.device
            server = stack.enter_context(Started(serve_command({"model": folder, **settings})))
            url, name, report = server.url, folder.name, server.report
            vocab_size = load_model_config(folder).vocab_size
            if device == "cuda" and arguments.model is None:
                sizes = f"{arguments.requests} x {arguments.input_tokens}/{arguments.output_tokens}"
                baseline = BASELINES["serving"].get(f"{arguments.shape} {sizes}", {})
        figures = measure(arguments, url, name, vocab_size)
    if arguments.json:
        result = {**environment(), "options": {k: str(v) for k, v in vars(arguments).items()}, "report": report}
        result["figures"] = [asdict(each) for each in figures]
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(figures, baseline))


if __name__ == "__main__":
    main()
