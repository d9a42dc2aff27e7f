"""Requests whose end two readers could see in different places: 400, and nothing behind them is read (RFC 9112)."""

import json
import re
import socket
from typing import Any

import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.support import Setup

BODY = b'{"prompt": "a", "max_tokens": 1}'
HOST = b"Host: localhost\r\n"
SECOND = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
"""What must not be taken for a request of its own."""
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(fields: bytes, body: bytes = b"", host: bytes = HOST, version: bytes = b"1.1") -> bytes:
    return b"POST /v1/completions HTTP/" + version + b"\r\n" + host + fields + b"\r\n" + body


def length(of: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(of)


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def exchange(setup: Setup, data: bytes) -> tuple[list[int], dict[str, Any]]:
    """The statuses of all answers until the server closes the connection, and the last body."""
    port = int(setup.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"\r\nconnection: close\r\n" in answer
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]
    return statuses, json.loads(answer.rpartition(b"\r\n\r\n")[2])


HEADS = {
    "space before the colon": (post(b"Content-Length : %d\r\n" % len(SECOND), SECOND), "white space before its colon"),
    "tab before the colon": (post(b"Content-Length\t: %d\r\n" % len(SECOND), SECOND), "white space before its colon"),
    "space before that of chunks": (post(b"Transfer-Encoding : chunked\r\n", SECOND), "white space before its colon"),
    "both lengths": (post(length(SECOND) + b"Transfer-Encoding: chunked\r\n", CHUNKS), "not both"),
    "both, the other way": (post(b"Transfer-Encoding: chunked\r\n" + length(SECOND), CHUNKS), "not both"),
    "differing lengths": (post(b"Content-Length: 0\r\n" + length(SECOND), SECOND), "at most one Content-Length"),
    "repeated lengths": (post(length(BODY) * 2, BODY + SECOND), "at most one Content-Length"),
    "a list of lengths": (post(b"Content-Length: 32, 32\r\n", BODY + SECOND), "must be 1 to 18 digits, not '32, 32'"),
    "a folded header": (post(b"X: a\r\n " + length(SECOND) + length(BODY), SECOND), "must stand on one line"),
    "a folded length": (post(b"Content-Length:\r\n 32\r\n", BODY), "must stand on one line"),
    "a folded first line": (
        b"POST /v1/completions HTTP/1.1\r\n " + length(BODY) + HOST + b"\r\n" + SECOND,
        "must stand on one line",
    ),
    "a signed length": (post(b"Content-Length: +32\r\n", BODY), "must be 1 to 18 digits, not '+32'"),
    "a negative length": (post(b"Content-Length: -1\r\n", SECOND), "must be 1 to 18 digits, not '-1'"),
    "a length with an underscore": (post(b"Content-Length: 3_2\r\n", BODY), "must be 1 to 18 digits, not '3_2'"),
    "digits of another script": (post("Content-Length: ٣٢\r\n".encode(), BODY), "must be 1 to 18 digits"),
    "an empty length": (post(b"Content-Length:\r\n", SECOND), "must be 1 to 18 digits, not ''"),
    "an endless length": (post(b"Content-Length: " + b"0" * 30 + b"32\r\n", BODY), "must be 1 to 18 digits"),
    "another coding": (post(b"Transfer-Encoding: gzip\r\n", SECOND), "must be 'chunked' alone"),
    "two codings": (post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS), "must be 'chunked' alone"),
    "the same coding twice": (post(b"Transfer-Encoding: chunked\r\n" * 2, CHUNKS), "must be 'chunked' alone"),
    "identity": (post(b"Transfer-Encoding: identity\r\n", SECOND), "must be 'chunked' alone"),
    "a coding behind a vertical tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS), "is not a header"),
    "chunks in HTTP/1.0": (
        post(b"Transfer-Encoding: chunked\r\n", CHUNKS, version=b"1.0"),
        "come with HTTP/1.1",
    ),
    "a line feed alone": (post(b"X: a\n" + length(SECOND), SECOND), "one of them stands alone"),
    "a carriage return alone": (post(b"X: a\r" + length(SECOND), SECOND), "one of them stands alone"),
    "lines that end with line feeds": (SECOND.replace(b"\r\n", b"\n"), "one of them stands alone"),
    "a zero byte in a name": (post(b"Content-Length\0: 9\r\n", SECOND), "is not a header"),
    "a zero byte in a value": (post(b"X: a\0b\r\n" + length(BODY), BODY), "is not a header"),
    "no name": (post(b": 9\r\n", SECOND), "is not a header"),
    "no colon": (post(b"Content-Length 9\r\n", SECOND), "is not a header"),
    "no host": (post(length(BODY), BODY, host=b""), "one Host header, not 0"),
    "two hosts": (post(HOST + length(BODY), BODY), "one Host header, not 2"),
    "a host that is none": (post(length(BODY), BODY, host=b"Host: a b\r\n"), "'a b' is not a name"),
    "the host of another URL": (
        b"GET http://evil.example/version HTTP/1.1\r\n" + HOST + b"\r\n",
        "must be that of the URL, 'evil.example'",
    ),
    "another version": (post(length(BODY), BODY, version=b"1.2"), "request line"),
    "two spaces": (b"GET  /version HTTP/1.1\r\n" + HOST + b"\r\n", "request line"),
    "a method that is none": (b"G@T /version HTTP/1.1\r\n" + HOST + b"\r\n", "request line"),
}
CHUNK_SIZES = {
    "a plus": b"+20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a minus": b"-20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a space behind": b"20 \r\n" + BODY + b"\r\n0\r\n\r\n",
    "a space before": b" 20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a prefix": b"0x20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "an underscore": b"2_0\r\n" + BODY + b"\r\n0\r\n\r\n",
    "many zeros": b"0" * 40 + b"20\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a huge size": b"f" * 17 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "no size": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a line feed in an extension": b"20;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a line feed alone": b"20\n" + BODY + b"\n0\n\n",
    "a long extension": b"20;" + b"a" * 5000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "data beyond the size": b"1f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "another end of the data": b"20\r\n" + BODY + b"XX0\r\n\r\n",
    "a trailer": b"20\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_with_two_meanings_is_refused(setup, name):
    data, reason = HEADS[name]
    statuses, body = exchange(setup, data)
    assert statuses == [400]
    assert reason in body["error"]["message"]
    assert setup.core.received(AddRequest) == []


@pytest.mark.parametrize("name", CHUNK_SIZES)
def test_a_chunk_size_with_two_meanings_is_refused(setup, name):
    statuses, body = exchange(setup, chunked(CHUNK_SIZES[name] + SECOND))
    assert statuses == [400]
    assert body["error"]["type"] == "invalid_request_error"
    assert setup.core.received(AddRequest) == []


def test_a_head_is_refused_before_its_end_has_come(setup):
    assert exchange(setup, b"POST /v1/completions HTTP/1.1\nHost: x\n")[0] == [400]


@pytest.mark.parametrize(
    "first",
    [
        post(length(BODY), BODY),
        post(b"content-LENGTH:32 \t\r\nX-\x7e!:\t \xe9\r\n", BODY),
        chunked(CHUNKS),
        chunked(b"1;a=b\r\n" + BODY[:1] + b"\r\n1F\r\n" + BODY[1:] + b"\r\n00\r\n\r\n"),
        post(length(BODY), BODY, host=b"Host: 127.0.0.1:8000\r\n"),
        b"POST http://localhost/v1/completions HTTP/1.1\r\n" + HOST + length(BODY) + b"\r\n" + BODY,
    ],
)
def test_what_has_one_meaning_is_served_and_so_is_what_comes_behind(setup, first):
    setup.say("x")
    statuses, _ = exchange(setup, first + SECOND.replace(HOST, HOST + b"Connection: close\r\n"))
    assert statuses == [200, 200]
    assert len(setup.core.received(AddRequest)) == 2


@pytest.mark.parametrize("size", [1, 3])
def test_heads_and_chunks_may_come_in_pieces(setup, size):
    setup.say("x")
    data = chunked(CHUNKS).replace(HOST, HOST + b"Connection: close\r\n")
    port = int(setup.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("encoding", ["length", "chunks"])
@pytest.mark.parametrize("attempt", range(3))
def test_a_body_that_is_too_long_is_answered_while_it_is_sent(setup, encoding, attempt):
    """The test server takes 1 MiB. A reset instead would take the answer from whoever is still sending."""
    body = b"x" * (8 * 2**20)
    if encoding == "length":
        data = post(length(body), body)
    else:
        data = chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    statuses, answer = exchange(setup, data)
    assert statuses == [413]
    assert answer["error"]["code"] == "request_too_large"
    assert answer["error"]["message"] == "The request's body must have at most 1048576 bytes."


def test_who_asks_before_it_sends_too_much_need_not_send(setup):
    statuses, _ = exchange(setup, post(b"Content-Length: 9999999\r\nExpect: 100-continue\r\n"))
    assert statuses == [413]
