"""What this machine can do: read bandwidth, copy bandwidth and matrix rate, measured and printed as JSON.

    python -m benchmarks.roofline --device cuda

On a GPU: a plain Triton reduction over 4 GiB, torch's copy of 4 GiB (read and written bytes count both), and a product
of two 8192 x 8192 bfloat16 matrices of random numbers (zeros would draw less power and run faster). On a CPU torch does
the same with small float32 sizes. Medians of single runs.

`measure_apart` does it in a process of its own, so that no memory is held when it returns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl

ROOT = Path(__file__).resolve().parents[1]
RUNS = 30
READ_BYTES = {"cuda": 4 * 2**30, "cpu": 128 * 2**20}
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
_BLOCK = 4096
_BLOCKS_PER_PROGRAM = 8


@triton.jit
def sum_blocks(data, sums, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """sums[p] = the sum of program p's BLOCK * NUM_BLOCKS elements."""
    program = tl.program_id(0)
    offsets = program.to(tl.int64) * (BLOCK * NUM_BLOCKS) + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(NUM_BLOCKS):
        total += tl.load(data + offsets + i * BLOCK)
    tl.store(sums + program, tl.sum(total, axis=0))


def measure_apart(device: str) -> dict[str, float | str]:
    """The figures of `measure`. Raises `CalledProcessError` when the process fails."""
    command = [sys.executable, "-m", "benchmarks.roofline", "--device", device]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    figures: dict[str, float | str] = json.loads(done.stdout)
    return figures


def measure(device: str) -> dict[str, float | str]:
    """Ceilings in bytes and floating-point operations per second."""
    num_bytes, size = READ_BYTES[device], MATRIX_SIZE[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    data = torch.rand(num_bytes // 4, device=device)  # float32, whatever the model's dtype
    read = median_seconds(_reduction(data), device)
    source, target = data.chunk(2)
    copy = median_seconds(lambda: target.copy_(source), device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    matmul = median_seconds(lambda: torch.mm(left, right, out=product), device)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "read_bytes_per_second": num_bytes / read,
        "copy_bytes_per_second": num_bytes / copy,  # half of the data read, the same amount written
        "flops_per_second": 2 * size**3 / matmul,
        "matmul": f"{size}^3 {str(dtype).removeprefix('torch.')}",
    }


def _reduction(data: torch.Tensor) -> Callable[[], object]:
    """Reads every element of float32 `data` [n] once."""
    if data.device.type == "cpu":
        return data.sum
    num_programs = data.numel() // (_BLOCK * _BLOCKS_PER_PROGRAM)
    sums = torch.empty(num_programs, device=data.device)
    return lambda: sum_blocks[(num_programs,)](data, sums, _BLOCK, _BLOCKS_PER_PROGRAM)


def median_seconds(run: Callable[[], object], device: str) -> float:
    """Of single runs after a few that do not count; on a GPU between events on its stream."""
    for _ in range(3):
        run()
    seconds = []
    for _ in range(RUNS):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(parser.parse_args().device)))


if __name__ == "__main__":
    main()
