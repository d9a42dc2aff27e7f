"""docs/conformance.md names every point, and tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "conformance.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)


def test_every_point_has_a_line() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 44))
    assert all("::" in tests for _, _, tests in ROWS)


def test_every_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 43
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
