"""Every program of examples/ runs against a started server, and prints what it promises."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import DEMO_MODEL, Server

EXAMPLES = DEMO_MODEL.parent / "examples"
JOIN = "Join one or more path segments intelligently."
MOST_LINES = 40


def printed_by(name: str, *arguments: str) -> str:
    """What the example prints. Its errors are shown when it fails."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=DEMO_MODEL.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def core_socket(server: Server) -> str:
    (socket,) = server.temp.glob("quire-*/core-0.sock")
    return str(socket)


def test_chat(server: Server) -> None:
    lines = printed_by("chat.py", server.url).splitlines()
    assert lines[0].startswith(JOIN)
    assert re.fullmatch(r"\d+ tokens in, \d+ tokens out", lines[-1])


def test_streaming(server: Server) -> None:
    answer, last = printed_by("streaming.py", server.url).splitlines()
    assert answer == printed_by("chat.py", server.url).splitlines()[0]
    assert re.fullmatch(r"\d+ tokens", last)


def test_tool_calls(server: Server) -> None:
    call, answer = printed_by("tool_calls.py", server.url).splitlines()
    assert call == 'get_weather({"city": "Paris"})'
    assert "21 degrees" in answer


def test_json_schema(server: Server) -> None:
    module, stars, summary = printed_by("json_schema.py", server.url).split("\n", 2)
    assert module in ("os", "json", "re")
    assert 1 <= int(stars) <= 5
    assert len(summary.removesuffix("\n")) <= 40


def test_score_answers(server: Server) -> None:
    lines = printed_by("score_answers.py", server.url).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert lines[0].endswith(JOIN)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > -1 > scores[1]


@pytest.mark.slow
def test_offline_batch() -> None:
    lines = printed_by("offline_batch.py", str(DEMO_MODEL)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["os.path.join", "json.loads", "re.sub", "time.sleep"]
    assert lines[0].removeprefix("os.path.join: ").startswith(JOIN)


def test_zeromq_client(server: Server) -> None:
    *deltas, last = printed_by("zeromq_client.py", core_socket(server), str(DEMO_MODEL)).splitlines()
    tokens = [token for delta in deltas for token in json.loads(delta[: delta.index("]") + 1])]
    assert len(tokens) == 16
    assert last == "length: 16 tokens"


@pytest.mark.slow
def test_prefix_router(start: Callable[..., Server], tmp_path: Path) -> None:
    """Prompts that come again go to the engine that has their blocks."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("ab" * 32)
    arguments = ("--prefix-hash-key-file", str(key), "--num-gpu-blocks-override", "200")
    servers = [start(*arguments), start(*arguments)]
    sockets = [core_socket(server.wait_until_ready()) for server in servers]
    assert printed_by("prefix_router.py", str(key), *sockets).splitlines() == [
        "prompt 5: engine 0 has 0 of 6 blocks",
        "prompt 6: engine 1 has 0 of 6 blocks",
        "prompt 7: engine 0 has 0 of 6 blocks",
        "prompt 5: engine 0 has 6 of 6 blocks",
        "prompt 6: engine 1 has 6 of 6 blocks",
        "prompt 7: engine 0 has 6 of 6 blocks",
    ]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_how_they_run(path: Path) -> None:
    source = path.read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None
    assert f"`python examples/{path.name}" in docstring
    code = [line for line in source.split('"""', 2)[2].splitlines() if line]
    assert len(code) <= MOST_LINES
    assert f"def test_{path.stem}(" in Path(__file__).read_text()
