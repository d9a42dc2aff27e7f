"""scripts/gpu_check.sh: everything tiny on the CPU, failing stages, and its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_report import report

ROOT = Path(__file__).parents[2]


def gpu_check(out: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "gpu_check.sh"), "--no-venv", "--dry", "--out", str(out), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    done = gpu_check(tmp_path)
    logs = "\n".join(file.read_text() for file in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, done.stdout + logs
    lines = done.stdout.splitlines()
    for stage in ("kernel-tests", "kernels", "offline-llama8b", "offline-qwen06b", "serving", "startup"):
        assert any(line.startswith(f"| {stage} |  | result | ok, ") for line in lines), stage
    for row in (
        "| kernels | rms_norm, ",
        "| offline-llama8b | nano, quire | seconds |",
        "| offline-qwen06b | decode1, quire | ms per output token |",
        "| serving | all at once | output tokens/s |",
        "| startup | serve, warm | ready after, s |",
    ):
        assert any(line.startswith(row) for line in lines), row
    figures = json.loads((tmp_path / "offline-llama8b.json").read_text())
    assert figures["roofline"]["read_bytes_per_second"] > 0
    assert figures["commit"] is None or len(figures["commit"]) == 40


def test_a_failing_stage_stops_no_other(tmp_path: Path) -> None:
    python = tmp_path / "python"
    # One that refuses to run tests and pretends that all else went well.
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"-m pytest"*) exit 3;; *gpu_report*) exec {sys.executable} "$@";; esac\n'
    )
    python.chmod(0o755)
    done = gpu_check(tmp_path / "out", "--stages", "kernel-tests kernels", python=str(python))
    assert done.returncode == 1
    assert "| kernel-tests |  | result | failed (3), " in done.stdout
    assert "| kernels |  | result | ok, " in done.stdout
    assert "startup" not in done.stdout


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--wet")
    assert (done.returncode, "no option --wet" in done.stderr) == (2, True)


@pytest.mark.parametrize(("result", "is_well"), [("ok", True), ("over 60 s", False)])
def test_report_of_stages(tmp_path: Path, result: str, is_well: bool) -> None:
    (tmp_path / "stages.tsv").write_text(f"compare\t{result}\t12\n")
    text, verdict = report(tmp_path)
    assert verdict is is_well
    assert f"| compare |  | result | {result}, 12 s |" in text
