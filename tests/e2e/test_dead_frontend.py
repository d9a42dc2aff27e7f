"""A response in the background whose frontend dies: whoever asks another frontend is told of the failure."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from engine_core.ipc.heartbeat import Heartbeats
from frontend.cli.flags import ServeArgs
from frontend.cli.resolve import resolve
from frontend.launcher import start_core, stop, wait_until_ready
from tests.e2e.server import DEMO_MODEL
from tests.frontend.support import FrontendProcess

pytestmark = pytest.mark.slow

_TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 5000}}, "required": ["text"]}
LONG = {
    "input": "Count",
    "max_output_tokens": 1900,
    "text": {"format": {"type": "json_schema", "name": "long", "schema": {**_TEXT, "additionalProperties": False}}},
}
"""An answer that goes on for seconds, whatever the model would rather say."""


@pytest.fixture
def frontends(tmp_path: Path) -> Iterator[list[FrontendProcess]]:
    """Two before one engine core, without the supervisor, which would end them all."""
    args = ServeArgs(model=str(DEMO_MODEL), device="cpu", num_threads=2, num_gpu_blocks_override=500, frontends=2)
    config = resolve(args).serve_config(str(tmp_path), 0)
    config_file = tmp_path / "core.json"
    config_file.write_bytes(msgspec.json.encode(config))
    core = start_core(str(config_file), 0, Heartbeats.create(3), 0)
    frontends: list[FrontendProcess] = []
    try:
        wait_until_ready(core, lambda progress: None)
        for _ in range(2):
            frontends.append(FrontendProcess(tmp_path, config))
            frontends[-1].wait_ready()
        yield frontends
    finally:
        for frontend in frontends:
            frontend.stop()
        stop(core, timeout=0.0)


def test_it_has_failed(frontends: list[FrontendProcess]) -> None:
    first, second = frontends
    body = {**LONG, "background": True}
    begun = httpx.post(f"{first.url}/v1/responses", json=body).raise_for_status().json()
    path = f"{second.url}/v1/responses/{begun['id']}"
    assert httpx.get(path).json()["status"] == "in_progress"
    os.kill(first.child.pid, signal.SIGKILL)
    assert first.wait_exit() == -signal.SIGKILL
    while (failed := httpx.get(path).raise_for_status().json())["status"] == "in_progress":
        pass
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert "send the request again" in failed["error"]["message"]
    assert httpx.post(f"{path}/cancel").json() == httpx.get(path).json() == failed
    while httpx.get(f"{second.url}/ready").json()["pending"] > 0:  # nobody generates for it any more
        pass
    answer = httpx.post(f"{second.url}/v1/responses", json={"input": "Hi", "max_output_tokens": 4}, timeout=60)
    assert answer.json()["status"] in ("completed", "incomplete")


def test_its_stream_ends(frontends: list[FrontendProcess]) -> None:
    first, second = frontends
    body = {**LONG, "background": True, "stream": True}
    with httpx.stream("POST", f"{first.url}/v1/responses", json=body) as begun:
        lines = (line for line in begun.iter_lines() if line.startswith("data: "))
        seen = [json.loads(next(lines).removeprefix("data: ")) for _ in range(6)]
    path = f"{second.url}/v1/responses/{seen[0]['response']['id']}"
    with httpx.stream("GET", f"{path}?stream=true", timeout=60) as followed:
        lines = (line for line in followed.iter_lines() if line.startswith("data: "))
        events = [json.loads(next(lines).removeprefix("data: ")) for _ in range(6)]
        os.kill(first.child.pid, signal.SIGKILL)
        events += [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events[:6] == seen
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[-1]["type"], events[-1]["response"]) == ("response.failed", httpx.get(path).json())
    # Whoever has seen more than the other process knew of is told of the end as well.
    rest = httpx.get(f"{path}?stream=true&starting_after={len(events) + 20}").text
    assert json.loads(rest.split("data: ")[1])["sequence_number"] == len(events) + 21
