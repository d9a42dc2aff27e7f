"""Throughput without HTTP: Quire's `LLM`, and a peer beside it in the same run on the same prompts.

`--peer transformers` measures transformers' `generate` twice: one request after the other, and all of them as one
padded batch (which runs until its longest answer ends, as such a batch does). Prints JSON, then a table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.works import WORKS, Work
from quire import LLM, SamplingParams

DEMO_MODEL = str(Path(__file__).resolve().parents[1] / "demo_model")


def run_quire(llm: LLM, work: Work) -> float:
    """Seconds for the whole work."""
    sampling = [
        SamplingParams(temperature=work.temperature, max_tokens=request.num_output_tokens, ignore_eos=True, seed=0)
        for request in work.requests
    ]
    start = time.perf_counter()
    outputs = llm.generate([request.prompt for request in work.requests], sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    for output, request in zip(outputs, work.requests, strict=True):
        assert len(output.outputs[0].token_ids) == request.num_output_tokens
    return seconds


class Transformers:
    """transformers' own generation on the same model, dtype and number of threads."""

    def __init__(self, model: str, dtype: str, num_threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def one_by_one(self, work: Work) -> float:
        """Seconds for the requests one after the other."""
        start = time.perf_counter()
        for request in work.requests:
            ids = self._torch.tensor([request.prompt])
            self._generate(ids, self._torch.ones_like(ids), request.num_output_tokens)
        return time.perf_counter() - start

    def padded_batch(self, work: Work) -> float:
        """Seconds for all of them as one batch, padded on the left."""
        width = max(len(request.prompt) for request in work.requests)
        ids = self._torch.zeros(len(work.requests), width, dtype=self._torch.long)
        mask = self._torch.zeros_like(ids)
        for row, request in enumerate(work.requests):
            ids[row, width - len(request.prompt) :] = self._torch.tensor(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        start = time.perf_counter()
        self._generate(ids, mask, max(request.num_output_tokens for request in work.requests))
        return time.perf_counter() - start

    def _generate(self, ids, mask, num_tokens: int) -> None:  # type: ignore[no-untyped-def]  # torch comes late
        with self._torch.inference_mode():
            result = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        assert result.shape[1] == ids.shape[1] + num_tokens


def measure(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every side, taken in turn so that a slow minute of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            seconds[name].append(run())
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--works", nargs="+", default=["mixed32"], choices=sorted(WORKS))
    parser.add_argument("--peer", choices=["transformers"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    peer = Transformers(arguments.model, arguments.dtype, arguments.num_threads) if arguments.peer else None
    results = []
    with LLM(
        arguments.model,
        dtype=arguments.dtype,
        num_threads=arguments.num_threads,
        seed=0,
        enable_prefix_caching=False,  # repeats must not find their own prompts
    ) as llm:
        for name in arguments.works:
            work = WORKS[name](vocab_size=json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"])
            print(f"{name}: {len(work.requests)} requests, {work.num_input_tokens} in, {work.num_output_tokens} out")
            sides: dict[str, Callable[[], float]] = {"quire": lambda work=work: run_quire(llm, work)}
            if peer is not None:
                sides["transformers, one by one"] = lambda work=work: peer.one_by_one(work)
                sides["transformers, padded batch"] = lambda work=work: peer.padded_batch(work)
            for run in sides.values():
                run()  # warm-up
            for side, seconds in measure(sides, arguments.repeats).items():
                tokens = work.num_output_tokens
                results.append({"work": name, "side": side, "seconds": seconds, "output_tokens": tokens})
    print(json.dumps(results))
    print_table(results)


def print_table(results: list[dict[str, object]]) -> None:
    """Medians, and every side's time against Quire's on the same work."""
    print("| work | side | seconds (median) | output tokens/s | Quire is faster by |")
    print("|---|---|---|---|---|")
    ours: dict[object, float] = {}
    for result in results:
        median = statistics.median(result["seconds"])  # type: ignore[arg-type]  # the list built above
        ours.setdefault(result["work"], median)
        rate = result["output_tokens"] / median  # type: ignore[operator]
        ratio = median / ours[result["work"]]
        print(f"| {result['work']} | {result['side']} | {median:.2f} | {rate:,.0f} | {ratio:.2f} x |")


if __name__ == "__main__":
    main()
