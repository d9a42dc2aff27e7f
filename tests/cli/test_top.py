"""`quire top` without a server: which one is meant, and what its report looks like. tests/e2e has one that runs."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from engine_core.ipc.inspection import BlockCounts, CacheUse, Chain, InspectedRequest, Inspection
from frontend.cli import top
from frontend.cli.main import main
from frontend.cli.top_report import top_lines
from frontend.supervisor.run_dir import RunDir, running_run_dirs

NOTHING = CacheUse(num_query_tokens=0, num_hit_tokens=0, num_preemptions=0, num_evictions=0)


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only place where run directories are looked for."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        monkeypatch.setattr("frontend.supervisor.run_dir._folders", lambda: [folder])
        yield Path(folder)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["top", "--once", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return code, err


def test_nobody_runs(temp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = temp / "quire-1-dead"
    stale.mkdir()
    assert running_run_dirs() == []
    code, err = complaint(capsys)
    assert (code, "No server of this user runs here" in err) == (2, True)
    assert stale.exists()  # whoever only looks removes nothing


def test_run_dirs_in_use_are_found_and_several_are_told_apart(temp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = RunDir(), RunDir()
    try:
        assert {str(path) for path in running_run_dirs()} == {first.path, second.path}
        code, err = complaint(capsys)
        assert code == 2
        assert first.path in err
        assert second.path in err
        code, err = complaint(capsys, "--run-dir", first.path)
        assert (code, "no admin socket" in err) == (2, True)
        second.remove()
        code, err = complaint(capsys)
        assert (code, f"{first.path} has no admin socket" in err) == (2, True)
    finally:
        first.remove()
        second.remove()


def test_a_core_that_does_not_answer(
    temp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "ANSWER_SECONDS", 0.05)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        silent.bind(f"ipc://{temp}/admin.sock")
        code, err = complaint(capsys, "--run-dir", str(temp))
    assert (code, "No engine core answered" in err) == (1, True)


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--limit", "1001"], ["--limit", "x"], ["--run-dir"], ["--what"]])
def test_wrong_flags(temp: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert complaint(capsys, *flags)[0] == 2


def test_a_full_report_fits_eighty_columns_and_steers_no_terminal() -> None:
    use = CacheUse(num_query_tokens=1000, num_hit_tokens=123, num_preemptions=4, num_evictions=5)
    chain = Chain(digest="ab" * 16, num_blocks=8, num_tokens=128, num_owners=3, num_continuations=2, idle_seconds=7300)
    request = InspectedRequest(
        request_id="\x1b[2Jcmpl-0123456789abcdef0123456789abcdef",
        status="running",
        num_blocks=9,
        num_tokens=140,
        num_cached_tokens=128,
        num_preemptions=1,
        age_seconds=130.0,
    )
    inspection = Inspection(
        replica=0,
        uptime_seconds=3.21,
        num_steps=12345,
        num_running=1,
        num_waiting=2,
        blocks=BlockCounts(total=100, free=50, owned=25, shared=3, cached=25, tokens_per_block=16),
        since_start=use,
        last_minute=NOTHING,
        chains=[chain],
        shared_prefixes=[chain],
        requests=[request],
    )
    lines = list(top_lines(inspection))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert "up 3.2 s, 12,345 steps, 1 running, 2 waiting" in lines[0]
    assert "██████████▒▒▒▒▒▒▒▒▒▒░" in lines[1]
    assert "25 owned (3 shared), 25 cached, 50 free of 100 with 16 tokens" in lines[2]
    assert "12.3% hit (123 of 1,000 tokens), 4 preemptions, 5 evictions" in lines[3]
    assert "0.0% hit" in lines[4]
    assert "abababababab" in text
    assert "2 h ago" in text
    assert "?[2Jcmpl-0123456789ab" in text
    assert "2 min" in text
    quiet = Inspection(**{**{name: getattr(inspection, name) for name in Inspection.__struct_fields__}, "chains": []})
    assert "Longest chains" not in "\n".join(top_lines(quiet))


def test_top_loads_neither_torch_nor_sanic() -> None:
    code = "import sys, frontend.cli.top, frontend.client; print({'torch', 'sanic', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
