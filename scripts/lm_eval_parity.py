"""Runs the tasks of tests/lm_eval with lm-eval's `local-completions` against a server, and with its `hf` model.

Exits with 1 where a sample's log-likelihoods differ by more than the tolerance, in parts of their size where that is
above 1, or one of the two takes another answer for the greedy one. Belongs to lm-eval's environment, from the folder of
the repository: see lm_eval_parity.sh.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENAI_API_KEY="none")

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = ["quire_choices", "quire_texts"]
_READY = re.compile(r"Quire is ready: (http://\S+)/v1 ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quire", default="quire", help="the program `quire`")
    parser.add_argument("--model", default="demo_model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a model's context")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    with server(arguments) as url:
        served = evaluate(
            "local-completions",
            {
                "model": os.path.basename(arguments.model),
                "base_url": f"{url}/v1/completions",
                "tokenizer": arguments.model,
                "tokenizer_backend": "huggingface",
                "num_concurrent": 8,
                # It takes off one for the token that a completion generates, and one more where windows roll.
                "max_length": arguments.max_length + 2,
            },
            batch_size=4,
        )
    own = evaluate(
        "hf",
        {
            "pretrained": arguments.model,
            "dtype": "float32",
            "device": arguments.device,
            "max_length": arguments.max_length,
            "add_bos_token": False,
        },
        batch_size=1,
    )
    failed = False
    for task in TASKS:
        difference, num_values, num_greedy = compare(served["samples"][task], own["samples"][task])
        failed |= difference > arguments.tolerance or num_greedy > 0
        print(
            f"{task}: {len(own['samples'][task])} samples, {num_values} log-likelihoods, largest difference "
            f"{difference:.2e}, {num_greedy} other verdicts on greedy answers"
        )
        for name, value in own["results"][task].items():
            if isinstance(value, float) and name.endswith(",none") and "stderr" not in name:
                print(f"  {name.removesuffix(',none')}: {served['results'][task][name]:.6f} served, {value:.6f} hf")
    sys.exit(failed)


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
    """A server of the model in float32; its URL."""
    command = [arguments.quire, "serve", arguments.model, "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen([*command, "--device", arguments.device], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, map(_READY.search, process.stdout)), None)
        if found is None:
            sys.exit("The server did not come up.")
        yield found.group(1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def evaluate(model: str, model_args: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """lm-eval's results with all samples."""
    tasks = TaskManager(include_path="tests/lm_eval", include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=TASKS, task_manager=tasks, batch_size=batch_size, log_samples=True
    )
    assert results is not None
    return dict(results)


def compare(served: list[dict[str, Any]], own: list[dict[str, Any]]) -> tuple[float, int, int]:
    """The largest difference between log-likelihoods, how many there are, and how often only one is called greedy."""
    largest, num_values, num_greedy = 0.0, 0, 0
    by_id = {sample["doc_id"]: sample for sample in served}
    assert len(by_id) == len(served) == len(own)
    for sample in own:
        for ours, theirs in zip(flat(by_id[sample["doc_id"]]), flat(sample), strict=True):
            num_values += 1
            largest = max(largest, abs(ours[0] - theirs[0]) / max(1.0, abs(theirs[0])))
            num_greedy += ours[1:] != theirs[1:]
    return largest, num_values, num_greedy


def flat(sample: dict[str, Any]) -> list[tuple[float, ...]]:
    """A sample's log-likelihoods, each with whether the answer is the greedy one where that was asked."""
    values = []
    for response in sample["resps"]:
        value = response[0]
        values.append(tuple(map(float, value)) if isinstance(value, tuple | list) else (float(value),))
    return values


if __name__ == "__main__":
    main()
