"""Run directories, listening sockets, the progress display, orphans."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_core.config.errors import ConfigError
from engine_core.ipc.control import Progress
from frontend.supervisor.listeners import open_listeners, url_of
from frontend.supervisor.progress import ProgressDisplay
from frontend.supervisor.run_dir import RunDir, remove_stale_run_dirs


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path: pytest's own are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_run_dir_is_private_short_and_removed(temp: Path) -> None:
    run_dir = RunDir()
    assert os.stat(run_dir.path).st_mode & 0o777 == 0o700
    assert Path(run_dir.path).parent == temp
    run_dir.remove()
    run_dir.remove()
    assert list(temp.iterdir()) == []


def test_a_temporary_folder_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    run_dir = RunDir()
    assert Path(run_dir.path).parent == Path("/tmp")
    run_dir.remove()
    assert list(long.iterdir()) == []
    monkeypatch.setattr(os.path, "isdir", lambda path: path == str(long))
    with pytest.raises(ConfigError, match="set TMPDIR"):
        RunDir()


def test_only_what_nobody_holds_is_stale(temp: Path) -> None:
    in_use = RunDir()
    stale, other = temp / "quire-1-abc", temp / "quire-notes"
    for folder in (stale, other):
        folder.mkdir()
    (stale / "core-0.sock").touch()
    (temp / "quire-3-link").symlink_to(other)
    remove_stale_run_dirs()
    assert {path.name for path in temp.iterdir()} == {Path(in_use.path).name, other.name, "quire-3-link"}
    in_use.remove()


def test_leftovers_are_found_in_both_folders(temp: Path) -> None:
    """Also those whose owner was killed before it could lock them; a fresh one may yet get its lock."""
    with tempfile.TemporaryDirectory(prefix="quire-1-", dir="/tmp") as fallback:
        old, fresh = temp / "new-quire-1-abc", temp / "new-quire-2-abc"
        for folder in (old, fresh):
            folder.mkdir()
        os.utime(old, (0, 0))
        remove_stale_run_dirs()
        assert [path.name for path in temp.iterdir()] == [fresh.name]
        assert not os.path.exists(fallback)
        os.mkdir(fallback)


def test_the_lock_ends_with_its_process(temp: Path) -> None:
    code = (
        "import os, tempfile\n"
        f"tempfile.tempdir = {str(temp)!r}\n"
        "from frontend.supervisor.run_dir import RunDir\n"
        "print(RunDir().path, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout.strip()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_listeners_share_one_free_port() -> None:
    listeners = open_listeners("127.0.0.1", 0, 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    assert ports != {0}
    # Nobody listens yet: a client is refused at once instead of left waiting.
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", ports.pop())) != 0
    for listener in listeners:
        listener.close()


def test_urls() -> None:
    assert url_of("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert url_of("::1", 80) == "http://[::1]:80"


def test_progress_is_plain_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay()
    for done in (0, 2**20, 3 * 2**20):
        display.update(Progress(stage="weights", done=done, total=3 * 2**20, unit="B"))
    display.update(Progress(stage="warm-up", done=1, total=2, unit="steps"))
    display.update(Progress(stage="warm-up", done=2, total=2, unit="steps"))
    display.update(Progress(stage="warm-up", done=2, total=2, unit="steps"))
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:3] == ["weights", "3.0", "MiB"]
    assert lines[1].split()[:3] == ["warm-up", "2", "steps"]


def test_orphans_are_adopted_and_reaped() -> None:
    """A grandchild whose parent was killed is waited for, and killed when it does not end by itself."""
    code = (
        "import subprocess, sys\n"
        "from frontend.supervisor.orphans import adopt_orphans, reap_orphans\n"
        "adopt_orphans()\n"
        'spawn = \'import subprocess; print(subprocess.Popen(["sleep", "1000"], stdout=-3, stderr=-3).pid)\'\n'
        "pid = subprocess.run([sys.executable, '-c', spawn], capture_output=True, text=True).stdout.strip()\n"
        "reap_orphans(0.0)\n"
        "print(pid)\n"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert not Path(f"/proc/{result.stdout.strip()}").exists()
