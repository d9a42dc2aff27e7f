"""Requests leave no reference cycles, so a frontend that never rests needs no collector."""

import json
import os
import signal
import socket

import pytest

from engine_core.ipc.messages import AbortRequest
from frontend import launcher
from frontend.launcher import Child
from tests.frontend.support import running_setup

NUM_HANG_UPS = 20


def test_requests_and_clients_that_hang_up_leave_no_cycles(tmp_path, monkeypatch: pytest.MonkeyPatch):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def start(name: str, module: str, arguments: list[str], fds: list[int], env: dict[str, str]) -> Child:
        return Child(name, "tests.frontend.garbage_frontend", [str(fifo), *arguments], fds, env)

    monkeypatch.setattr(launcher, "Child", start)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    with running_setup(tmp_path) as setup:
        setup.say("Hello ")
        assert setup.chat(max_tokens=4).status_code == 200
        assert setup.chat(max_tokens=-1).status_code == 400
        assert setup.chat("long " * 4000, max_tokens=4).status_code == 400
        setup.say("Hello ", reason=None)  # never finished, so each hang-up is an abort
        for _ in range(NUM_HANG_UPS):
            _hang_up(setup.frontend.url)
        setup.core.wait_for(lambda core: _num_aborted(core.received(AbortRequest)) == NUM_HANG_UPS)
        assert setup.http.get("/health").status_code == 200
        os.kill(setup.frontend.child.pid, signal.SIGUSR1)
        told = json.loads(fifo.read_text())
    assert not {"frame", "traceback", "Request", "RequestStream", "OutputPiece"} & told["kinds"].keys(), told
    assert sum(told["kinds"].values()) < NUM_HANG_UPS, told
    assert told["threshold"] >= 1_000_000
    assert told["frozen"] > 10_000, "what was there at the start is not looked at"


def _num_aborted(messages: list[AbortRequest]) -> int:
    return sum(len(message.handles) for message in messages)


def _hang_up(url: str) -> None:
    """In the middle of a stream."""
    host, port = url.removeprefix("http://").split(":")
    body = b'{"messages": [{"role": "user", "content": "Hello"}], "stream": true, "max_tokens": 400}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n" % host.encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while b"data: " not in connection.recv(65536):
            pass
