"""Programs that are started: ready, late or dead, and what they report on the way."""

import sys

import pytest

from benchmarks.started import Started, serve_command
from frontend.cli.commands import build_parser, read_settings

SERVER = """
import signal, sys
print("  weights        15.0 GiB in 2.5 s, 6.0 GiB/s", file=sys.stderr)
print("  warm-up        12 steps in 0.4 s", file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("Plan", flush=True)
print("Quire is ready: http://127.0.0.1:1/v1 (model m, 0.1 s)", flush=True)
signal.pause()
"""


def test_settings_become_flags() -> None:
    settings = {"model": "m", "max_num_seqs": 3, "enable_prefix_caching": "false", "enforce_eager": True}
    arguments = serve_command(settings)[4:]
    read = read_settings(build_parser().parse_args(arguments))
    assert {name: getattr(read, name) for name in settings} == {
        **settings,
        "enable_prefix_caching": False,
        "enforce_eager": True,
    }


def test_a_server_that_comes_up() -> None:
    with Started([sys.executable, "-c", SERVER]) as started:
        assert started.report[0] == "Plan"
        assert started.url == "http://127.0.0.1:1/v1"
        assert started.stages() == {"weights": 2.5, "warm-up": 0.4}
        assert started.resident_mib()["parent"] > 1
        assert started.seconds_to_ready > 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('It cannot be.')", "ended before it was ready:\nIt cannot be."),
        ("import signal; signal.pause()", "was not ready in time"),
    ],
)
def test_a_server_that_does_not(code: str, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        Started([sys.executable, "-c", code], timeout=0.5 if "pause" in code else 60)
