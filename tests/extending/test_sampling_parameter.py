"""The recipe "a sampling parameter" of docs/extending.md, followed for `least_id` in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extending.toy_parameter import extended
from tests.gpu_workers.small_models import save_model


def test_all_else_follows_from_the_schema(tmp_path: Path) -> None:
    """Ranges, HTTP and `LLM` fields, the row's record, and which rows the operation runs for."""
    save_model(tmp_path)
    command = [sys.executable, "-m", "tests.extending.toy_parameter", str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert min(found["bound"]) >= 150 > min(found["free"])
    assert found["refusal"] == "least_id must be 0 or more, not -1."
    assert (found["http"], found["llm"]) == (3, 4)


def test_a_schema_without_the_recipes_places_is_noticed() -> None:
    with pytest.raises(AssertionError, match="The schema has no place like"):
        extended("class SamplingParams: ...")
