"""A client's trace context on its whole way: HTTP header, frontend, engine core, the file that `--trace` names."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.slow

CHAT, COMPLETION = (f"00-4bf92f3577b34da6a3ce929d0e0e473{digit}-00f067aa0ba902b7-01" for digit in "67")


def test_a_timeline_that_cannot_be_written_is_a_warning(start: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    server = start("--trace", str(folder / "trace.json")).wait_until_ready()
    folder.rmdir()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    (line,) = [line for line in server.errors() if "timeline" in line]
    assert line.endswith(f"cannot be written to {folder / 'trace.json'}: No such file or directory.")
    assert "Traceback" not in "\n".join(server.errors())


def test_a_traceparent_reaches_the_timeline(start: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    server = start("--trace", str(file)).wait_until_ready()
    with server.client() as client:
        client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=3,
            extra_headers={"traceparent": CHAT},
        )
        for headers in ({"traceparent": COMPLETION}, {}, {"traceparent": "x" * 513}):
            client.completions.create(model=server.model, prompt="a", max_tokens=2, extra_headers=headers)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    requests = [e for e in json.loads(file.read_text())["traceEvents"] if e["name"] == "request" and e["ph"] == "b"]
    assert [e["args"]["traceparent"] for e in requests] == [CHAT, COMPLETION, None, None]
    assert all(e["args"]["num_prompt_tokens"] > 0 for e in requests)
