"""Clients and web pages that mean harm, against a real server: what they get, and what the others still get."""

import contextlib
import json
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server

FIRST, SECOND = "sk-first", "sk-second"
LARGE_TOOL = {"type": "function", "name": "f", "description": "x" * 14_000_000, "parameters": {"type": "object"}}
LONG = {"prompt": "A list", "max_tokens": 2000, "ignore_eos": True}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server of two keys that runs two requests at a time and lets eight wait."""
    server = Server("--api-key", FIRST, SECOND, "--max-num-seqs", "2", "--max-num-waiting", "8")
    try:
        yield server.wait_until_ready()
    finally:
        server.close()
        server.remove()
    assert server.process.returncode == 0


@contextlib.contextmanager
def client(server: Server, key: str = FIRST, address: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """One that has a key and an address of its own."""
    with httpx.Client(
        base_url=server.url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
        transport=httpx.HTTPTransport(local_address=address),
    ) as http:
        yield http


def address_of(server: Server) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def statuses(server: Server, data: bytes) -> list[str]:
    """Of all answers until the server closes the connection."""
    with socket.create_connection(address_of(server), timeout=20) as connection:
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return [line.split()[1] for line in answer.split("\r\n") if line.startswith("HTTP/1.1 ")]


@pytest.mark.slow
def test_no_second_request_is_smuggled_behind_a_first_one(guarded: Server) -> None:
    fields = f"Host: localhost\r\nAuthorization: Bearer {FIRST}\r\n"
    hidden = f"GET /v1/models HTTP/1.1\r\n{fields}\r\n"
    for frame in (
        f"Content-Length : {len(hidden)}",
        f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked",
        f"Content-Length: 0\r\nContent-Length: {len(hidden)}",
        f"X: y\r\n Content-Length: {len(hidden)}",
        "Transfer-Encoding: chunked ,identity",
    ):
        head = f"POST /v1/completions HTTP/1.1\r\n{fields}{frame}\r\n\r\n"
        assert statuses(guarded, f"{head}{hidden}".encode()) == ["400"], frame


@pytest.mark.slow
def test_pages_of_other_sites_are_refused_with_a_key_too(guarded: Server) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1})
    with client(guarded) as http:
        simple = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
        assert http.post("/v1/completions", content=body, headers=simple).status_code == 403
        rebound = {
            "Host": "evil.example:8000",
            "Origin": "http://evil.example:8000",
            "Content-Type": "application/json",
        }
        assert http.post("/v1/completions", content=body, headers=rebound).status_code == 403
        assert http.post("/v1/completions", content=body).status_code == 200


@pytest.mark.slow
def test_one_keys_responses_do_not_push_out_anothers(guarded: Server) -> None:
    ask: dict[str, Any] = {"input": "Hi", "max_output_tokens": 1}
    with client(guarded) as first, client(guarded, SECOND) as second:
        small = [first.post("/v1/responses", json=ask).raise_for_status().json()["id"] for _ in range(5)]
        flood = [
            second.post("/v1/responses", json={**ask, "tools": [LARGE_TOOL], "tool_choice": "none"}).json()["id"]
            for _ in range(12)
        ]
        assert [first.get(f"/v1/responses/{name}").status_code for name in small] == [200] * 5
        assert [second.head(f"/v1/responses/{name}").status_code for name in (flood[0], flood[-1])] == [404, 200]


def test_the_prefix_cache_tells_no_key_what_another_one_asked(guarded: Server) -> None:
    def num_cached(http: httpx.Client, **fields: Any) -> int:
        body = {"prompt": "one two three four five " * 40, "max_tokens": 1, **fields}
        answer = http.post("/v1/completions", json=body).raise_for_status().json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with client(guarded) as first, client(guarded, SECOND) as second:
        assert num_cached(first) == 0
        assert num_cached(second) == 0
        assert num_cached(first) == num_cached(second) > 100
        assert num_cached(first, cache_salt="a") == 0


def wait_for(http: httpx.Client, **wanted: int) -> None:
    """Until so many requests run and wait; the test's own time limit ends a wait in vain."""
    lines = {f"vllm:num_requests_{name}": float(value) for name, value in wanted.items()}
    while True:
        text = http.get("/metrics").raise_for_status().text
        values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if "{" in line}
        if lines.items() <= values.items():
            return


def connect(server: Server, data: bytes) -> socket.socket:
    """A connection on which this has been sent, and nothing has been read."""
    connection = socket.create_connection(address_of(server), timeout=60)
    connection.sendall(data)
    return connection


def send(server: Server, key: str, **fields: Any) -> socket.socket:
    """A completion that is asked for."""
    body = json.dumps({**LONG, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    return connect(server, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def answered(connections: list[socket.socket]) -> list[socket.socket]:
    return select.select(connections, [], [], 0)[0]


def test_one_key_does_not_fill_the_queue(guarded: Server) -> None:
    """Whatever the policy, which is fcfs here: of eight places one key has four, and another key finds room."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(client(guarded))
        flood = [stack.enter_context(send(guarded, SECOND)) for _ in range(2)]
        wait_for(first, running=2, waiting=0)
        flood += [stack.enter_context(send(guarded, SECOND)) for _ in range(18)]
        wait_for(first, running=2, waiting=4)
        answers: list[httpx.Response] = []
        honest = threading.Thread(
            target=lambda: answers.append(first.post("/v1/completions", json={**LONG, "max_tokens": 2}))
        )
        honest.start()
        with client(guarded) as other:
            wait_for(other, waiting=5)
            refused = answered(flood)
            assert len(refused) == 20 - 2 - 4
            assert all(b" 429 " in connection.recv(100) for connection in refused)
            for connection in flood:
                connection.close()
        honest.join(60)
        assert answers[0].status_code == 200


@pytest.mark.slow
def test_a_client_with_many_invented_keys_is_one_client(start: Callable[..., Server]) -> None:
    """Without configured keys the address tells clients apart, for shares and for the bound alike."""
    server = start("--scheduling-policy", "fair", "--max-num-seqs", "1", "--max-requests-per-key", "8")
    server.wait_until_ready()
    with contextlib.ExitStack() as stack:
        honest = stack.enter_context(client(server, "sk-honest", "127.0.0.2"))
        flood = [stack.enter_context(send(server, f"sk-{number}", max_tokens=200)) for number in range(8)]
        wait_for(honest, running=1, waiting=7)
        refused = stack.enter_context(send(server, "sk-one-more"))
        assert b" 429 " in refused.recv(4096)
        answer = honest.post("/v1/completions", json={**LONG, "max_tokens": 20})
        assert answer.status_code == 200, (answer.text, server.errors())
        assert len(answered(flood)) <= 2, "an honest client waited for requests of another one"


@pytest.mark.slow
def test_a_drain_ends_at_its_bound_whatever_clients_hold_up(start: Callable[..., Server]) -> None:
    """A large answer that nobody reads, a stream that is not over, half a head and half a body."""
    server = start("--drain-timeout", "2").wait_until_ready()
    with contextlib.ExitStack() as stack:
        with client(server) as http:
            fields = {"max_output_tokens": 1, "tools": [LARGE_TOOL], "tool_choice": "none"}
            name = http.post("/v1/responses", json={"input": "Hi", **fields}).raise_for_status().json()["id"]
        head = f"GET /v1/responses/{name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {FIRST}\r\n\r\n".encode()
        half = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        for data in (head, half[:30], half):
            stack.enter_context(connect(server, data))
        stream = stack.enter_context(send(server, FIRST, stream=True))
        stream.recv(1)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - began < 2 + 8
    said = server.errors()
    assert server.complaints() == ["quire: SIGTERM: finishing what runs, for up to 2 s."]
    assert [line for line in said if "frontend 0" in line] == [
        "frontend 0: WARNING Requests not finished within 2 seconds: 1. Connections cut: 1 with an answer that the "
        "client did not read, 2 with a request that the client had not sent in full."
    ]
    assert not [line for line in said if "Traceback" in line]
    server.assert_nothing_left()
