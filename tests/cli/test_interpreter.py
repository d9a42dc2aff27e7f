"""Interpreters and processors that are refused at the start, by `quire serve` and by `LLM`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.cli.interpreter import check_interpreter

QUIRE = str(Path(sys.executable).parent / "quire")
LLM = [sys.executable, "-c", "from quire import LLM; LLM('nowhere')"]


def last_line(command: list[str], **environment: str) -> tuple[int, str]:
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    return result.returncode, result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", "2", "yes"])
def test_optimized_python_is_refused(value: str) -> None:
    result = subprocess.run(
        [QUIRE, "serve", "nowhere"], capture_output=True, text=True, env={"PYTHONOPTIMIZE": value}, timeout=120
    )
    assert result.returncode == 2
    sentence = "Optimized Python leaves out checks that Quire needs: start without -O and PYTHONOPTIMIZE."
    assert result.stderr == f"quire: {sentence}\n"
    assert last_line(LLM, PYTHONOPTIMIZE=value)[1].endswith(f"ConfigError: {sentence}")


def test_the_flag_is_refused_too() -> None:
    code, line = last_line([sys.executable, "-O", *LLM[1:]])
    assert (code, "Optimized Python" in line) == (1, True)


@pytest.mark.parametrize("value", ["", "0"])
def test_a_variable_that_asks_for_nothing_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", value)
    check_interpreter()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setarch") is None, reason="setarch makes a process see another machine")
def test_other_processors_are_refused() -> None:
    sentence = "Quire needs an x86-64 processor: its processes' shared memory is not safe on 'i686'."
    assert last_line(["setarch", "i686", QUIRE, "serve", "nowhere"]) == (2, f"quire: {sentence}")
    assert last_line(["setarch", "i686", *LLM])[1].endswith(f"ConfigError: {sentence}")
