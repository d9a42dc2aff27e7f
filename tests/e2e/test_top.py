"""`quire top` beside a real server: a prompt that is sent twice shows as a hit and as a chain."""

import json
import os
import pty
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import QUIRE, Server

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef" * 4
PROMPT = "The function os.path.join joins one or more path segments. " * 8
FIRST, SECOND = ("What does os.path.split do? " * 3, "What does json.dumps return? " * 3)


def run_top(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As the user would call it: it finds the only server that runs."""
    return subprocess.run(
        [str(QUIRE), "top", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "TMPDIR": str(server.temp)},
    )


@pytest.fixture
def served(start: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with a given key that has answered one prompt, with two ends, three times."""
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    server = start("--num-gpu-blocks-override", "300", "--prefix-hash-key-file", str(key_file)).wait_until_ready()
    with server.client() as client:
        for end in (FIRST, FIRST, SECOND):
            client.completions.create(model=server.model, prompt=PROMPT + end, max_tokens=4)
    return server


def test_top_shows_hits_and_chains_and_leaves_the_server_alone(served: Server) -> None:
    (run_dir,) = served.temp.glob("quire-*")
    admin = (run_dir / "admin.sock").stat()
    assert stat.S_ISSOCK(admin.st_mode)
    assert stat.S_IMODE(admin.st_mode) == 0o600
    assert KEY not in (run_dir / "config.json").read_text()

    named = ("--run-dir", str(run_dir))  # other servers may run beside the tests
    result = run_top(served, "--once", *named)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Longest chains" in result.stdout
    assert "Longest shared prefixes" in result.stdout
    assert "\x1b" not in result.stdout

    result = run_top(served, "--once", "--json", "--limit", "3", *named)
    seen = json.loads(result.stdout)
    blocks, use = seen["blocks"], seen["since_start"]
    assert blocks["total"] == 300
    assert blocks["free"] + blocks["owned"] + blocks["cached"] == 300
    assert (blocks["owned"], seen["requests"]) == (0, [])
    (shared,), chains = seen["shared_prefixes"], seen["chains"]
    assert len(chains) == shared["num_continuations"] == 2
    assert chains[0]["num_blocks"] >= chains[1]["num_blocks"] > shared["num_blocks"] > 5
    # The second prompt was found but for its last tokens, the third as far as it is the same.
    assert use["num_hit_tokens"] > 2 * shared["num_tokens"]
    assert use["num_query_tokens"] > use["num_hit_tokens"] > 0.4 * use["num_query_tokens"]
    assert use == seen["last_minute"]
    assert all(0 <= chain["idle_seconds"] < 60 and chain["num_owners"] == 0 for chain in [*chains, shared])

    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    served.assert_nothing_left()


def test_on_a_terminal_it_refreshes_until_ctrl_c(served: Server) -> None:
    (run_dir,) = served.temp.glob("quire-*")
    main_fd, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(QUIRE), "top", "--run-dir", str(run_dir)],
        stdout=terminal,
        stderr=terminal,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in a shell's background ignores it
    )
    os.close(terminal)
    output = b""
    while output.count(b"Quire, replica 0") < 2:
        output += os.read(main_fd, 65536)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            chunk = os.read(main_fd, 65536)
        except OSError:  # EIO: the other side is closed
            break
        output += chunk
    os.close(main_fd)
    assert process.wait(30) == 0
    assert output.startswith(b"\x1b[?25l")
    assert output.rstrip().endswith(b"\x1b[?25h")
    assert b"Traceback" not in output


def test_it_says_when_the_server_goes(served: Server) -> None:
    (run_dir,) = served.temp.glob("quire-*")
    process = subprocess.Popen(
        [str(QUIRE), "top", "--json", "--run-dir", str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["replica"] == 0
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("quire: ")
    assert errors.count("\n") == 1


def test_equal_keys_make_equal_digests(start: Callable[..., Server], served: Server, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    other = start("--num-gpu-blocks-override", "300", "--prefix-hash-key-file", str(key_file)).wait_until_ready()
    with other.client() as client:
        client.completions.create(model=other.model, prompt=PROMPT + FIRST, max_tokens=4)
    chains = []
    for server in (served, other):
        (run_dir,) = server.temp.glob("quire-*")
        seen = json.loads(run_top(server, "--once", "--json", "--run-dir", str(run_dir)).stdout)
        chains.append({chain["digest"] for chain in seen["chains"]})
    assert chains[0] & chains[1]


@pytest.mark.parametrize(("text", "mode", "reason"), [("12", 0o600, "64 hex digits"), (KEY, 0o644, "by others")])
def test_a_key_that_cannot_be_used(
    start: Callable[..., Server], tmp_path: Path, text: str, mode: int, reason: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(text)
    key_file.chmod(mode)
    server = start("--prefix-hash-key-file", str(key_file))
    assert server.wait() == 2
    assert [reason in line for line in server.errors()] == [True]
