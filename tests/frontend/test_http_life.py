"""Disconnects, stalled readers, draining, and the end of a frontend process."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from engine_core.ipc.messages import AbortRequest, AddRequest
from tests.frontend.support import Setup, events_of, running_setup

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]


def raw_connection(setup: Setup, data: bytes) -> socket.socket:
    """A connection that has sent these bytes, has read nothing and has little room for what it does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", int(setup.url.rpartition(":")[2])))
    connection.sendall(data)
    return connection


def raw_request(setup: Setup, body: dict) -> socket.socket:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return raw_connection(setup, head.encode() + data)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("padding", [0, 100_000, 900_000])
def test_a_disconnect_aborts_at_once(setup, stream, padding):
    setup.say("again and again", endless=True)
    setup.core.pause()
    setup.core.allow_steps(3)
    connection = raw_request(setup, {"messages": USER, "stream": stream, "n": 2, "user": "x" * padding})
    (add,) = setup.core.wait_for(lambda core: core.received(AddRequest))
    connection.close()
    handles = {add.handle, add.handle + 1}
    setup.core.wait_for(
        lambda core: {handle for abort in core.received(AbortRequest) for handle in abort.handles} == handles
    )
    assert setup.core.num_running == 0


def test_a_stop_string_aborts_in_the_engine(setup):
    setup.say("again and again", reason=None)
    assert setup.chat(stop="and").json()["choices"][0]["message"]["content"] == "again "
    setup.core.wait_for(lambda core: core.received(AbortRequest) and core.num_running == 0)


def test_a_stalled_reader_slows_nobody(setup):
    setup.say("word " * 400, endless=True)
    stalled = raw_request(setup, {"messages": USER, "stream": True, "max_tokens": 400, "n": 8})
    setup.core.wait_for(lambda core: core.received(AddRequest))
    events = events_of(setup.chat(stream=True, max_tokens=300))
    assert events[-1] == "[DONE]"
    # The late reader still gets all of its own.
    data = b""
    while b"[DONE]" not in data:
        data += stalled.recv(65536)
    stalled.close()
    assert data.count(b'"finish_reason":"length"') == 8


@contextlib.contextmanager
def stalled_reader(setup: Setup) -> Iterator[socket.socket]:
    """A stream of much more than connections hold, whose reader has let as much wait as it may."""
    setup.say("word " * 400, endless=True)
    setup.core.pace(0.01)  # so that it is the reader for whom everything waits, and not the frontend
    body = {"messages": USER, "stream": True, "n": 128, "logprobs": True, "top_logprobs": 20}
    with raw_request(setup, body) as connection:
        setup.core.wait_for(lambda core: core.received(AbortRequest), timeout=120)
        yield connection
    setup.core.pace(0.0)


@pytest.mark.slow
def test_what_a_stalled_reader_leaves_unread_is_bounded(setup):
    """Its request ends in the engine, and it is told so should it read on."""
    with stalled_reader(setup) as connection:
        assert setup.chat(max_tokens=3).status_code == 200
        data = b""
        while b"[DONE]" not in data[-100:]:
            data = data[-4096:] + connection.recv(65536)
    assert b'"code":"reader_too_slow"' in data
    unread = re.search(rb"The request was ended: (\d+) bytes of output had not been read", data)
    assert unread is not None
    assert 4 * 2**20 < int(unread.group(1)) < 5 * 2**20
    setup.core.wait_for(lambda core: core.num_running == 0)


def test_heartbeat_and_progress(setup):
    setup.say("one two three")
    setup.chat()
    began = time.monotonic_ns()
    while (line := setup.frontend.heartbeats.read(1)).progress == 0 or line.beat_ns < began:
        assert setup.http.get("/health").status_code == 200
    assert line.beat_ns <= time.monotonic_ns()
    assert line.pending == 0


def test_draining_finishes_what_runs_and_refuses_the_rest(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one two three")
        own.core.pause()
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(own.chat(stream=True)))
        running.start()
        own.core.wait_for(lambda core: core.num_running == 1)
        with httpx.Client(base_url=own.url, timeout=20) as other:
            assert other.get("/ready").status_code == 200
            own.frontend.child.drain(20)
            while (refusal := other.get("/ready")).status_code == 200:
                pass
            assert refusal.json()["error"]["code"] == "shutting_down"
            refusal = other.post(CHAT, json={"messages": USER})
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "shutting_down")
            assert refusal.headers["retry-after"]
            assert other.get("/health").status_code == 200
        own.core.resume()
        running.join(20)
        assert events_of(answers[0])[-1] == "[DONE]"
        assert own.frontend.wait_exit() == 0


def test_draining_ends_in_time_with_an_error_for_who_is_late(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one two three", endless=True)
        own.core.pause()
        own.core.allow_steps(3)
        with own.http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            own.frontend.child.drain(0.2)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert rest[-1] == "data: [DONE]"
        assert own.frontend.wait_exit() == 0


@pytest.mark.slow
def test_draining_cuts_what_clients_hold_up(tmp_path, capfd):
    """A stream that is not read, half a head and half a body: one line, exit code 0, at the bound."""
    with running_setup(tmp_path) as own:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        parts = [head[:30], head + b"{"]
        with stalled_reader(own), contextlib.ExitStack() as clients:
            for part in parts:
                clients.enter_context(raw_connection(own, part))
            own.frontend.child.drain(1.0)
            began = time.monotonic()
            assert own.frontend.wait_exit() == 0
            assert time.monotonic() - began < 8
    said = capfd.readouterr().err
    assert said.splitlines() == [
        "frontend 0: WARNING Requests not finished within 1 seconds: 1. Connections cut: 1 with an answer that the "
        "client did not read, 2 with a request that the client had not sent in full."
    ]


def test_an_idle_frontend_drains_at_once(tmp_path):
    with running_setup(tmp_path) as own:
        assert own.http.get("/health").status_code == 200  # leaves a connection open
        own.frontend.child.drain(1000)
        assert own.frontend.wait_exit() == 0


def test_the_supervisors_death_ends_it_at_once(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one", reason=None)
        connection = raw_request(own, {"messages": USER, "stream": True})
        own.core.wait_for(lambda core: core.num_running == 1)
        own.frontend.child.link.close()
        assert own.frontend.wait_exit() is not None
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
        connection.close()


def test_a_folder_without_a_tokenizer_is_one_sentence_and_code_2(tmp_path):
    from benchmarks.stub_config import frontend_config, serve_config
    from tests.frontend.support import FrontendProcess

    frontend = FrontendProcess(tmp_path, serve_config(tmp_path, frontend_config(tmp_path / "nothing")))
    assert frontend.wait_exit() == 2
    assert frontend.child.failed is not None
    assert frontend.child.failed.message.startswith(f"{tmp_path / 'nothing' / 'tokenizer.json'} is missing; ")
    frontend.stop()
