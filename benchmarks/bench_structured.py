"""What structured output costs: throughput against free text, and the grammar process' memory over many schemas.

    python -m benchmarks.bench_structured                                                # the demo model, on a CPU
    python -m benchmarks.bench_structured --shape llama8b --batch 64 --schemas 0         # random weights, on a GPU

Throughput, in one engine, in turns: a batch under a JSON schema, then the same prompts as free text with as many tokens
for each request as the schema's answer had. The first batch's time has the compilation in it, and is not counted.

Schemas in sequence, through HTTP: each differs from all before; meanwhile `/health` is asked over and over.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import SHAPES, write_model_folder
from benchmarks.started import Started, serve_command
from quire import LLM, SamplingParams, StructuredOutputs

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 10, "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["draft", "final", "übersetzt"]}, "minItems": 3, "maxItems": 6},
        "authors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "minLength": 5, "maxLength": 24}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
            "minItems": 2,
            "maxItems": 3,
        },
        "summary": {"type": "string", "minLength": 40, "maxLength": 120},
    },
    "required": ["title", "tags", "authors", "summary"],
    "additionalProperties": False,
}


def throughput(model: str, batch: int, rounds: int, load_format: str = "safetensors") -> None:
    """Prints tokens per second of both sides and their ratio, round by round and in the middle."""
    prompts = [f"Describe document number {number} as JSON." for number in range(batch)]
    structure = StructuredOutputs(json=SCHEMA)
    with LLM(model, max_num_seqs=batch, max_model_len=1024, load_format=load_format) as llm:

        def run(params: Sequence[SamplingParams]) -> tuple[float, list[int]]:
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - start, [len(output.outputs[0].token_ids) for output in outputs]

        rates: list[tuple[float, float]] = []
        for number in range(rounds + 1):
            bound = [
                SamplingParams(max_tokens=400, seed=batch * number + index, structured_outputs=structure)
                for index in range(batch)
            ]
            seconds, counts = run(bound)
            free = [
                SamplingParams(max_tokens=count, ignore_eos=True, seed=batch * number + index)
                for index, count in enumerate(counts)
            ]
            free_seconds, free_counts = run(free)
            assert free_counts == counts
            if number == 0:
                print("| round | tokens | JSON schema, tokens/s | free text, tokens/s | share |\n|---|---|---|---|---|")
                continue
            rates.append((sum(counts) / seconds, sum(counts) / free_seconds))
            bound_rate, free_rate = rates[-1]
            share = bound_rate / free_rate
            print(f"| {number} | {sum(counts)} | {bound_rate:.0f} | {free_rate:.0f} | {share:.3f} |", flush=True)
    print(f"| median | | | | {statistics.median(bound / free for bound, free in rates):.3f} |")


def schemas(model: str, count: int) -> None:
    """Prints the memory of the grammar process on the way, and how `/health` fared."""
    health: list[float] = []
    done = threading.Event()
    command = serve_command({"port": 0, "max_model_len": 1024})
    command.insert(command.index("serve") + 1, model)
    with Started(command) as server:
        base = server.url.removesuffix("/v1")

        def watch() -> None:
            while not done.wait(0.02):
                start = time.perf_counter()
                urllib.request.urlopen(f"{base}/health").read()
                health.append(time.perf_counter() - start)

        watcher = threading.Thread(target=watch)
        watcher.start()
        latencies, resident = [], {}
        for number in range(count):
            start = time.perf_counter()
            ask(server.url, number)
            latencies.append(time.perf_counter() - start)
            if (number + 1) % (count // 5) == 0 or number + 1 == count // 10:
                resident[number + 1] = server.resident_mib()
        done.set()
        watcher.join()
    names = [name for name in next(iter(resident.values())) if name.startswith("engine_core")]
    print(f"\n| schemas | {' | '.join(f'{name}, MiB' for name in names)} |\n|{'---|' * (len(names) + 1)}")
    for number, figures in resident.items():
        print(f"| {number} | {' | '.join(f'{figures[name]:.1f}' for name in names)} |")
    print(f"\n| /health p50, p99, ms, of {len(health)} | {np.percentile(health, 50) * 1e3:.1f}, ", end="")
    print(f"{np.percentile(health, 99) * 1e3:.1f} |\n|---|---|")
    print(f"| a request with a new schema, 8 tokens, p50, p99, ms | {np.percentile(latencies, 50) * 1e3:.1f}, ", end="")
    print(f"{np.percentile(latencies, 99) * 1e3:.1f} |")


def ask(url: str, number: int) -> None:
    """One chat under a schema that nobody has asked for yet."""
    schema = {
        **SCHEMA,
        "properties": {**SCHEMA["properties"], f"field_{number}": {"type": "number", "maximum": number}},
    }
    body = {
        "messages": [{"role": "user", "content": "Describe a document."}],
        "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "document", "schema": schema}},
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        response.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo_model")
    parser.add_argument("--shape", choices=list(SHAPES), help="throughput of random weights in this shape instead")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--schemas", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.rounds and arguments.shape:
        with tempfile.TemporaryDirectory() as folder:
            path = write_model_folder(arguments.shape, Path(folder), is_textual=True)
            throughput(str(path), arguments.batch, arguments.rounds, load_format="dummy")
    elif arguments.rounds:
        throughput(arguments.model, arguments.batch, arguments.rounds)
    if arguments.schemas:
        schemas(arguments.model, arguments.schemas)


if __name__ == "__main__":
    main()
