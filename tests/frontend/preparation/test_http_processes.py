"""A frontend's preparation processes, seen from outside: their deaths, the frontend's end, and clients' turns."""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from frontend.api_keys import digest_of
from frontend.preparation.pool import NUM_PROCESSES
from frontend.preparation.turns import MAX_WAITING
from tests.e2e.server import wait_for_end
from tests.frontend.support import Setup, running_setup

CHAT = "/v1/chat/completions"
LONG = {"prompt": "The quick fox. " * 1000}
ENDLESS = {
    "messages": [{"role": "user", "content": "Hello"}],
    "chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}
"""It takes 10 s of a processor, and is refused then."""
KEYS = ("first key", "second key")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Setup]:
    """A frontend of the test's own, with one idle preparation process."""
    changes = {"trust_request_chat_template": True, "api_key_digests": [digest_of(key) for key in KEYS]}
    with running_setup(tmp_path, **changes, tells_apart="keys") as setup:
        setup.http.headers["Authorization"] = f"Bearer {KEYS[0]}"
        assert setup.post("/tokenize", LONG).status_code == 200
        yield setup


def forker(setup: Setup) -> psutil.Process:
    (process,) = psutil.Process(setup.frontend.child.pid).children()
    return process


def below(setup: Setup) -> list[psutil.Process]:
    return psutil.Process(setup.frontend.child.pid).children(recursive=True)


def kill_forker(setup: Setup) -> None:
    """With all that it has forked."""
    pids = [process.pid for process in below(setup)]
    forker(setup).kill()
    wait_for_end(pids)


@contextlib.contextmanager
def endless_request(setup: Setup) -> Iterator["tuple[psutil.Process, Future[httpx.Response]]"]:
    """The process that prepares it, once it works, and the answer to come."""
    (process,) = forker(setup).children()
    began = process.cpu_times().user
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(setup.post, CHAT, ENDLESS)
        while process.cpu_times().user < began + 0.1:
            assert not answer.done(), answer.result().text
        yield process, answer


def test_a_process_that_is_killed_at_work_fails_its_request_alone(own):
    with endless_request(own) as (process, answer):
        process.kill()
        failed = answer.result()
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
    assert "prepared this request has ended" in failed.json()["error"]["message"]
    assert own.post("/tokenize", LONG).status_code == 200
    (other,) = forker(own).children()
    assert other.pid != process.pid


@pytest.mark.slow
@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_forking_process_that_dies_is_replaced_by_a_new_interpreter(own, is_at_work):
    """Jobs at work fail and no other; the frontend itself is never forked again, and nothing of the dead is left."""
    frontend = psutil.Process(own.frontend.child.pid)
    expected = own.post("/tokenize", LONG).json()
    first = forker(own)
    with endless_request(own) if is_at_work else contextlib.nullcontext() as work:
        pids = [process.pid for process in below(own)]
        first.kill()
        if work is not None:
            assert work[1].result().status_code == 500
    wait_for_end(pids)
    assert below(own) == []
    for _ in range(2):
        assert own.post("/tokenize", LONG).json() == expected
    second = forker(own)
    assert second.pid != first.pid
    assert second.cmdline()[1:4] == ["-P", "-m", "frontend.preparation"]
    assert len(second.children()) == 1
    assert frontend.is_running()


@pytest.mark.slow
def test_a_forking_process_that_cannot_be_replaced_is_a_503(own, tmp_path):
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    kill_forker(own)
    refused = own.post("/tokenize", LONG)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "resources_exhausted")
    assert refused.headers["retry-after"] == "1"
    assert own.post("/tokenize", {"prompt": "short"}).status_code == 200
    (tmp_path / "elsewhere.json").rename(tmp_path / "tokenizer.json")
    assert own.post("/tokenize", LONG).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_frontend(own, end, is_second):
    """`end`: how it ends, None for a drain. `is_second`: whether its first forking process has died before."""
    if is_second:
        kill_forker(own)
        assert own.post("/tokenize", LONG).status_code == 200
    with endless_request(own) as (_, answer):
        pids = [process.pid for process in below(own)]
        assert len(pids) == 2
        if end is None:
            own.frontend.child.drain(0.0)
            assert own.frontend.wait_exit() == 0
        else:
            os.kill(own.frontend.child.pid, end)
            assert own.frontend.wait_exit() == -end
        wait_for_end(pids)
        assert isinstance(answer.exception(), httpx.TransportError)


def ask(setup: Setup, body: dict[str, Any], key: str) -> socket.socket:
    """A connection on which a request has been sent."""
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", int(setup.url.rpartition(":")[2])), 20)
    connection.sendall(head.encode() + data)
    return connection


def test_many_long_requests_of_one_client_hold_up_nobody_else(own):
    """One client's requests have all places but one, and wait in a queue that leaves room for others' requests."""
    most = NUM_PROCESSES - 1 + MAX_WAITING // 2
    with contextlib.ExitStack() as clients:
        endless = [clients.enter_context(ask(own, ENDLESS, KEYS[0])) for _ in range(most + 1)]
        refused, _, _ = select.select(endless, [], [], 30)
        assert len(refused) == 1
        answer = refused[0].recv(65536).decode()
        assert answer.startswith("HTTP/1.1 429 ")
        assert "retry-after: 1\r\n" in answer.lower()
        assert "Too many long requests of this client wait to be prepared." in answer
        for _ in range(3):
            other = own.post("/tokenize", LONG, headers={"Authorization": f"Bearer {KEYS[1]}"})
            assert other.status_code == 200
        assert select.select(endless, [], [], 0)[0] == [], "the others are at work or wait"
    while (status := own.post("/tokenize", LONG).status_code) == 429:  # until the hang-ups have been noticed
        pass
    assert status == 200
