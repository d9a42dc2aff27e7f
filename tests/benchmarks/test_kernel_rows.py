"""The rows of the kernel benchmark in their tiny form: each kernel agrees with its reference, and its calls run."""

import importlib

import pytest
import torch

from benchmarks.benchmark_kernels import ROWS, table
from benchmarks.kernel_rows.case import Bench, assert_near
from tests.kernels.device import DEVICE


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_row(row: str) -> None:
    torch.manual_seed(3)
    cases = list(getattr(importlib.import_module(f"benchmarks.kernel_rows.{ROWS[row]}"), row)(Bench(DEVICE, dry=True)))
    assert cases
    for case in cases:
        case.check()
        case.calls[0]()
        assert case.work > 0


def test_wrong_results_are_noticed() -> None:
    exact = torch.randn(100)
    assert_near(exact * (1 + 1e-7), exact, torch.float32)
    with pytest.raises(AssertionError):
        assert_near(exact * 1.001, exact, torch.float32)
    with pytest.raises(AssertionError):
        assert_near(exact.clone().fill_(torch.nan), exact, torch.bfloat16)


def test_table_has_the_units_of_the_ceiling() -> None:
    figures = [
        {"kernel": "k", "case": "c", "seconds": 1e-3, "rate": 2e12, "bound": "read", "ceiling": 4e12, "share": 0.5},
        {"kernel": "m", "case": "c", "seconds": 1e-3, "rate": 3e14, "bound": "matmul", "ceiling": 6e14, "share": 0.5},
    ]
    lines = table(figures).splitlines()
    assert lines[2] == "| k | c | 1000.0 | 2,000 GB/s | 4,000 GB/s | 50.0% |"
    assert lines[3] == "| m | c | 1000.0 | 300 TFLOP/s | 600 TFLOP/s | 50.0% |"
