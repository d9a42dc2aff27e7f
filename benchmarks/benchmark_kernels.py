"""Every kernel beside the ceiling of this machine, measured in the same run: GB/s or TFLOP/s, and the share of it.

    python -m benchmarks.benchmark_kernels --rows rms_norm decode_attention
    python -m benchmarks.benchmark_kernels --dry

Each row's result is compared with the reference first, on poisoned outputs and fresh random inputs. Times are medians
of CUDA graphs in which the call is repeated over several sets of inputs (timing.py). `--dry`, and a machine without a
GPU: tiny shapes, through Triton's interpreter, whose times mean nothing.

A kernel is added by a function in kernel_rows/ and a line in ROWS.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.figures import markdown, number

ROWS = {
    "embed": "elementwise",
    "rms_norm": "elementwise",
    "add_rms_norm": "elementwise",
    "gather_add_rms_norm": "elementwise",
    "silu_and_mul": "elementwise",
    "gelu_and_mul": "elementwise",
    "rope_write_kv": "attention",
    "plan_attention": "attention",
    "decode_attention": "attention",
    "prefill_attention": "attention",
    "greedy": "sampling",
    "drawn": "sampling",
    "filtered": "sampling",
    "filter_thresholds": "sampling",
    "penalties": "sampling",
    "keep_allowed": "sampling",
    "follow_sequences": "sampling",
    "top_n_sigma": "sampling",
    "token_logprobs": "sampling",
    "linear": "products",
    "library_linear": "products",
}
"""Row to the module of kernel_rows/ that has it."""
CEILINGS = {"read": "read_bytes_per_second", "copy": "copy_bytes_per_second", "matmul": "flops_per_second"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, object]], list[str]]:
    """Figures of all cases, and a sentence for each that computed something wrong."""
    # What defines kernels is imported here: Triton reads the environment when it does.
    import torch

    device = "cuda" if torch.cuda.is_available() and not arguments.dry else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.kernel_rows.case import Bench
    from benchmarks.roofline import measure_apart
    from benchmarks.timing import median_seconds

    ceilings = measure_apart(device)
    print(json.dumps({"roofline": ceilings}), flush=True)
    bench = Bench(device, dry=device == "cpu")
    figures: list[dict[str, object]] = []
    failures = []
    for row in arguments.rows:
        torch.manual_seed(0)
        for case in getattr(importlib.import_module(f"benchmarks.kernel_rows.{ROWS[row]}"), row)(bench):
            try:
                case.check()
            except AssertionError as error:
                failures.append(f"{row}, {case.label}: {error}")
            seconds = median_seconds(case.calls, device)
            ceiling = float(ceilings[CEILINGS[case.bound]])
            rate = case.work / seconds
            figures.append(
                {"kernel": row, "case": case.label, "seconds": seconds, "rate": rate, "bound": case.bound}
                | {"ceiling": ceiling, "share": rate / ceiling}
            )
            print(f"{row}, {case.label}: {seconds * 1e6:.1f} µs", flush=True)
    return figures, failures


def table(figures: list[dict[str, object]]) -> str:
    rows = [["kernel", "case", "µs", "rate", "ceiling", "share"]]
    for figure in figures:
        unit, scale = ("TFLOP/s", 1e12) if figure["bound"] == "matmul" else ("GB/s", 1e9)
        row = [figure["kernel"], figure["case"], f"{figure['seconds'] * 1e6:.1f}"]  # type: ignore[operator]
        row += [f"{number(figure[name] / scale)} {unit}" for name in ("rate", "ceiling")]  # type: ignore[operator]
        rows.append([*row, f"{figure['share']:.1%}"])
    return markdown(rows)


def main() -> None:
    arguments = parse_arguments()
    figures, failures = measure(arguments)
    if arguments.json:
        result = {**environment(), "figures": figures, "failures": failures}
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(figures))
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
