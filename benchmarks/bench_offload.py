"""How fast a prefix comes back from host memory, against computing it again and against finding it in the cache.

    python -m benchmarks.bench_offload --shape llama8b
    python -m benchmarks.bench_offload --lengths 64 256 --repeats 2

The KV cache holds one prompt of the greatest length. For each prefix length a prompt of new tokens is asked for three
times: computed; found in the cache; and, after another prompt that fills the cache, loaded from the host. Times are the
engine's own, from arrival to the first token, medians. The rate of the reload is the prefix's bytes over what it takes
longer than a hit. That prompt is always the same, so evicting it stores nothing; under `--fresh` it is a new one each
time, and each reload waits for as many stores. Beside it the rate of plain copies between the same two memories, in a
process of its own before the engine starts.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT, environment
from benchmarks.figures import markdown, number
from benchmarks.shapes import SHAPES, write_model_folder
from engine_core.planning.memory_plan import GIB
from frontend.cli.flags import make_args
from frontend.cli.resolve import Resolved, resolve
from frontend.client import Finished
from frontend.llm.local_engine import LocalEngine

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
LINK_BYTES = 2**28
WARM_UP = -1


@dataclass
class Row:
    """One prefix length: seconds to the first token of each repeat."""

    num_tokens: int
    num_bytes: int
    computed: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)

    @property
    def reload_rate(self) -> float | None:
        """Bytes per second; None where a reload takes no longer than a hit."""
        more = statistics.median(self.loaded) - statistics.median(self.found)
        return self.num_bytes / more if more > 0 else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default=str(ROOT / "demo_model"), help="a model folder")
    what.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--lengths", type=int, nargs="+", help=f"of the prefixes, in tokens (default: {LENGTHS})")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="every reload evicts blocks that the host does not have")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further settings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def resolve_settings(arguments: argparse.Namespace, folder: Path) -> tuple[Resolved, list[int]]:
    """The engine, and the lengths that its model has positions for. Lengths are whole blocks; the cache holds one
    prompt of the greatest, the host all that is ever computed."""
    settings: dict[str, Any] = {"model": arguments.model, "device": arguments.device}
    if arguments.shape:
        settings.update(model=str(write_model_folder(arguments.shape, folder)), load_format="dummy")
    settings.update(pair.split("=", 1) for pair in arguments.set)
    plain = resolve(make_args({"num_gpu_blocks_override": None, **settings, "max_model_len": None}))
    block_size, most = plain.plan.kv_layout.block_size, plain.engine.model.max_position_embeddings
    wanted = arguments.lengths or [length for length in LENGTHS if length + 2 <= most]
    lengths = sorted({max(1, length // block_size) * block_size for length in wanted})
    max_model_len = min(most, lengths[-1] + block_size)
    if len(plain.plan.groups) > 1:
        raise SystemExit("Of a model with sliding windows only a part comes back: choose one without.")
    num_blocks = plain.plan.demand.peak(max_model_len)
    num_prompts = (arguments.repeats + 1) * (len(lengths) if arguments.fresh else 0) + 1
    num_host_blocks = num_prompts * num_blocks + (arguments.repeats + 1) * (sum(lengths) // block_size + len(lengths))
    settings.update(
        max_model_len=max_model_len,
        num_gpu_blocks_override=num_blocks,
        kv_offload_gib=(num_host_blocks + 1) * plain.plan.bytes_per_block / GIB,
        max_num_seqs=8,
    )
    return resolve(make_args(settings)), lengths


class Bench:
    """An engine that is up, and prompts for it."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._random = random.Random(0)
        self._kv_layout = engine.config.kv_layout()
        self._filler = self._tokens(engine.config.scheduler.max_model_len - 1)

    def wait_for_memory(self) -> float:
        """Asks for small things until the workers have all host memory ready; returns how many seconds that took."""
        started = time.perf_counter()
        while self._figure("num_kv_offload_blocks_ready") < self._engine.config.cache.num_host_blocks:
            self._ask(self._tokens(1))
        return time.perf_counter() - started

    def measure(self, num_tokens: int, repeats: int, fresh: bool) -> Row:
        row = Row(num_tokens, num_tokens // self._kv_layout.block_size * self._kv_layout.block_bytes)
        for repeat in range(WARM_UP, repeats):
            prompt = self._tokens(num_tokens + 1)
            computed = self._ask(prompt)
            found = self._ask(prompt)
            self._ask(self._tokens(len(self._filler)) if fresh else self._filler)
            before = self._figure("external_prefix_cache_hits_total")
            loaded = self._ask(prompt)
            assert self._figure("external_prefix_cache_hits_total") - before == num_tokens
            assert (computed.num_cached_tokens, found.num_cached_tokens) == (0, num_tokens), (computed, found)
            if repeat != WARM_UP:
                for times, finished in ((row.computed, computed), (row.found, found), (row.loaded, loaded)):
                    times.append(finished.queue_time + finished.prefill_time)
        return row

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._engine.config.model.vocab_size) for _ in range(count)]

    def _ask(self, prompt: list[int]) -> Finished:
        async def ask() -> Finished:
            sampling = {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True}
            async for delta in self._engine.client.generate(array("i", prompt), sampling):
                if delta.finished is not None:
                    return delta.finished
            raise AssertionError("a stream ends with how it ended")

        return self._engine.run(ask())

    def _figure(self, name: str) -> float:
        text: str = self._engine.run(self._engine.client.utility("metrics"))
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))


def link_rate(device: str) -> float:
    """Bytes per second of plain copies of a large piece: to a GPU from pinned memory, on a CPU within its memory."""
    host = torch.zeros(LINK_BYTES, dtype=torch.uint8, pin_memory=device == "cuda")
    target = torch.zeros_like(host, device=device)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        target.copy_(host)
        seconds.append(time.perf_counter() - started)
    return LINK_BYTES / statistics.median(seconds)


def table(rows: list[Row], link: float) -> str:
    head = ["prefix, tokens", "MiB", "computed, ms", "loaded, ms", "found, ms", "computed / loaded", "reload, GB/s"]
    lines = [[*head, "share of a plain copy"]]
    for row in rows:
        computed, loaded, found = (statistics.median(times) for times in (row.computed, row.loaded, row.found))
        rate = row.reload_rate
        lines.append(
            [f"{row.num_tokens:,}", number(row.num_bytes / 2**20)]
            + [number(seconds * 1e3) for seconds in (computed, loaded, found)]
            + [f"{computed / loaded:.2f}", "" if rate is None else number(rate / 1e9)]
            + ["" if rate is None else f"{rate / link:.0%}"]
        )
    return markdown(lines)


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        resolved, lengths = resolve_settings(arguments, Path(folder))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            link = pool.apply(link_rate, (resolved.engine.device,))
        engine = LocalEngine(resolved, lambda progress: None)
        try:
            bench = Bench(engine)
            seconds = bench.wait_for_memory()
            rows = [bench.measure(length, arguments.repeats, arguments.fresh) for length in lengths]
        finally:
            engine.close()
    if arguments.json:
        result = {
            **environment(),
            "model": arguments.shape or arguments.model,
            "device": resolved.plan.device.name,
            "link_bytes_per_second": link,
            "host_memory_seconds": seconds,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(
        f"{resolved.plan.device.name}: a plain copy runs at {link / 1e9:.1f} GB/s; "
        f"{resolved.plan.host_bytes / GIB:.2f} GiB of host memory were there {seconds:.1f} s after the engine was ready"
    )
    print(table(rows, link))


if __name__ == "__main__":
    main()
