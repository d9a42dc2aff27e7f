"""What masks that come late cost the requests that need none: inter-token latency beside bound requests and without.

    python -m benchmarks.bench_late_masks --shape tiny-qwen06b            # on a CPU
    python -m benchmarks.bench_late_masks --shape qwen06b --delay-ms 20   # on a GPU

In one engine, in turns: `--num-free` requests of free text beside `--num-bound` under a regular expression, and beside
as many of free text. The grammar process is stopped for `--delay-ms` again and again, so that masks take that long.
Prints the mean time between two tokens of the free requests on both sides, and its share, round by round.
"""

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.shapes import SHAPES, write_model_folder
from quire import LLM, SamplingParams, StructuredOutputs

_RUNS_SECONDS = 0.002
"""Between two stops: enough for the masks that are due."""


@contextlib.contextmanager
def delayed_masks(seconds: float) -> Iterator[None]:
    """Stops the grammar processes of this process' engine for `seconds` again and again."""
    children = psutil.Process().children(recursive=True)
    pids = [child.pid for child in children if "engine_core.grammar" in child.cmdline()]
    assert pids, "there is no grammar process"
    done = threading.Event()

    def stop_and_go() -> None:
        while not done.is_set():
            for number, wait in ((signal.SIGSTOP, seconds), (signal.SIGCONT, _RUNS_SECONDS)):
                for pid in pids:
                    os.kill(pid, number)
                done.wait(wait)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def inter_token_ms(llm: LLM, num_free: int, num_beside: int, num_tokens: int, is_bound: bool) -> float:
    """Of the free requests; those beside them are bound or free as well."""
    free = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    beside = free
    if is_bound:
        letters = StructuredOutputs(regex=f"[a-z ]{{{8 * num_tokens}}}")
        beside = SamplingParams(max_tokens=num_tokens, structured_outputs=letters)
    prompts = [f"Request number {number}: " for number in range(num_free + num_beside)]
    outputs = llm.generate(prompts, [free] * num_free + [beside] * num_beside, use_tqdm=False)
    times = []
    for output in outputs[:num_free]:
        assert output.metrics is not None
        times.append(output.metrics.decode_time * 1e3 / (num_tokens - 1))
    return statistics.mean(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny-qwen06b")
    parser.add_argument("--num-free", type=int, default=248)
    parser.add_argument("--num-bound", type=int, default=8)
    parser.add_argument("--num-tokens", type=int, default=100)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = arguments.num_free, arguments.num_bound, arguments.num_tokens
    with tempfile.TemporaryDirectory() as folder:
        path = write_model_folder(arguments.shape, Path(folder), is_textual=True)
        with LLM(str(path), max_num_seqs=sum(sizes[:2]), max_model_len=1024, load_format="dummy") as llm:
            inter_token_ms(llm, *sizes, is_bound=True)  # compiles the grammar
            print("| round | beside free text, ms | beside late masks, ms | share |\n|---|---|---|---|")
            shares = []
            for number in range(1, arguments.rounds + 1):
                alone = inter_token_ms(llm, *sizes, is_bound=False)
                with delayed_masks(arguments.delay_ms / 1e3):
                    late = inter_token_ms(llm, *sizes, is_bound=True)
                shares.append(late / alone)
                print(f"| {number} | {alone:.2f} | {late:.2f} | {shares[-1]:.3f} |", flush=True)
    print(f"| median | | | {statistics.median(shares):.3f} |")


if __name__ == "__main__":
    main()
