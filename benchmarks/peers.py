"""Other engines, each in a process of its own that runs works on request; the prompts are those of `make_work`.

    python -m benchmarks.peers vllm --model FOLDER --reply-fd N

A line of JSON on stdin, `{"method", "work", "repeat", "scale"}`, is answered by one on the reply descriptor: what `Run`
holds. The first line of replies is `{"ready_seconds"}`. stdout stays the engine's own.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from benchmarks.figures import Run
from benchmarks.works import Work, make_work


class Peer(Protocol):
    def run(self, method: str, work: Work) -> Run:
        """Measures the work."""


class Transformers:
    """transformers' own generation: one request after the other, or all as one padded batch (which runs until its
    longest answer ends, as such a batch does)."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import transformers

        if options.num_threads:
            torch.set_num_threads(options.num_threads)
        self._torch = torch
        self._device = options.device
        dtype = getattr(torch, options.dtype)
        if options.load_format == "dummy":
            config = transformers.AutoConfig.from_pretrained(options.model)
            with torch.device(options.device):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device)
        self._model = model.eval()

    def run(self, method: str, work: Work) -> Run:
        return Run({"one by one": self._one_by_one, "padded batch": self._padded_batch}[method](work))

    def _one_by_one(self, work: Work) -> float:
        start = time.perf_counter()
        for request in work.requests:
            ids = self._torch.tensor([request.prompt], device=self._device)
            self._generate(ids, self._torch.ones_like(ids), request.num_output_tokens, work.temperature)
        return time.perf_counter() - start

    def _padded_batch(self, work: Work) -> float:
        width = max(len(request.prompt) for request in work.requests)
        ids = self._torch.zeros(len(work.requests), width, dtype=self._torch.long)
        mask = self._torch.zeros_like(ids)
        for row, request in enumerate(work.requests):
            ids[row, width - len(request.prompt) :] = self._torch.tensor(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        start = time.perf_counter()
        longest = max(request.num_output_tokens for request in work.requests)
        self._generate(ids.to(self._device), mask.to(self._device), longest, work.temperature)
        return time.perf_counter() - start

    def _generate(self, ids: Any, mask: Any, num_tokens: int, temperature: float) -> None:
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with self._torch.inference_mode():
            result = self._model.generate(
                ids,
                attention_mask=mask,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
                **sampling,
            )
        if result.is_cuda:
            self._torch.cuda.synchronize()
        assert result.shape[1] == ids.shape[1] + num_tokens


class Vllm:
    """vLLM at its defaults, with an empty prefix cache before each work."""

    def __init__(self, options: argparse.Namespace) -> None:
        import vllm

        self._vllm = vllm
        self._llm = vllm.LLM(
            model=options.model,
            dtype=options.dtype,
            load_format="dummy" if options.load_format == "dummy" else "auto",
            max_model_len=options.max_model_len,
            gpu_memory_utilization=options.gpu_memory_utilization,
            disable_log_stats=False,  # else there is no time of a first token
        )

    def run(self, method: str, work: Work) -> Run:
        assert method == ""
        self._llm.reset_prefix_cache()
        sampling = [
            self._vllm.SamplingParams(
                temperature=work.temperature, max_tokens=request.num_output_tokens, ignore_eos=True
            )
            for request in work.requests
        ]
        prompts = [{"prompt_token_ids": request.prompt} for request in work.requests]
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        for output, request in zip(outputs, work.requests, strict=True):
            assert len(output.outputs[0].token_ids) == request.num_output_tokens
        return Run(seconds, outputs[0].metrics.first_token_latency)


PEERS: dict[str, type[Peer]] = {"transformers": Transformers, "vllm": Vllm}
METHODS = {"transformers": ("one by one", "padded batch"), "vllm": ("",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--load-format", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--gpu-memory-utilization", type=float, required=True)
    parser.add_argument("--num-threads", type=int, default=0)
    parser.add_argument("--reply-fd", type=int, required=True)
    options = parser.parse_args()
    with os.fdopen(options.reply_fd, "w", buffering=1) as replies:
        start = time.perf_counter()
        peer = PEERS[options.peer](options)  # type: ignore[call-arg]  # all take the options
        print(json.dumps({"ready_seconds": time.perf_counter() - start}), file=replies)
        vocab_size = json.loads((Path(options.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        for line in sys.stdin:
            order = json.loads(line)
            work = make_work(order["work"], vocab_size, order["repeat"], order["scale"])
            print(json.dumps(asdict(peer.run(order["method"], work))), file=replies)


if __name__ == "__main__":
    main()
