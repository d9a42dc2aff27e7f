"""The load of the serving benchmark: arrivals, reading streams however they are cut, and figures made of it."""

import asyncio
import itertools
import json

import pytest

from benchmarks.bench_serving import arrival_offsets, summarize, table
from benchmarks.load_client import Answer, Load, Stream, http_request

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'30\r\ndata: {"choices":[{"text":"t1 ","index":0}]}\n\n\r\n'
    b": ping\n\n"
    b'30\r\ndata: {"choices":[{"text":"t2 ","index":0}]}\n\n\r\n'
    b'20\r\ndata: {"choices":[{"text":"","finish_reason":"length"}]}\n\n\r\n'
    b'20\r\ndata: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n\r\n'
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def close(self) -> None:
        self.closed = True


def read(pieces: list[bytes]) -> Answer:
    async def feed() -> Answer:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream, transport = Stream(b"request", done), FakeTransport()
        stream.connection_made(transport)
        assert transport.written == b"request"
        for piece in pieces:
            stream.data_received(piece)
        stream.connection_lost(None)
        assert transport.closed
        assert done.done()
        return stream.answer

    return asyncio.run(feed())


@pytest.mark.parametrize("size", [1, 7, 60, 10_000])
def test_reads_a_stream_however_it_is_cut(size: int) -> None:
    answer = read([STREAM[start : start + size] for start in range(0, len(STREAM), size)])
    assert (answer.error, answer.num_events, answer.num_tokens) == (None, 2, 2)
    assert len(answer.arrivals) == (1 if size == 10_000 else 2)


def test_failures_are_told() -> None:
    assert read([b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}"]).error == "HTTP/1.1 429 Too Many Requests"
    assert "connection lost" in (read([STREAM[:150]]).error or "")


def test_arrivals() -> None:
    assert arrival_offsets("inf", 3, "a") == [0.0, 0.0, 0.0]
    offsets = arrival_offsets("8", 4000, "a")
    assert offsets[0] == 0.0
    assert all(earlier <= later for earlier, later in itertools.pairwise(offsets))
    assert offsets[-1] / 3999 == pytest.approx(1 / 8, rel=0.05)
    assert offsets == arrival_offsets("8", 4000, "a") != arrival_offsets("8", 4000, "b")


def test_requests_hold_their_own_prompts() -> None:
    load = Load("h", 1, "m", 50, 12, 3, "seed", {}, 1.0)
    bodies = [json.loads(http_request(load, number).partition(b"\r\n\r\n")[2]) for number in (0, 1)]
    assert bodies[0]["prompt"] != bodies[1]["prompt"]
    assert len(bodies[0]["prompt"]) == 12
    assert (bodies[0]["max_tokens"], bodies[0]["model"], bodies[0]["ignore_eos"]) == (3, "m", True)


def test_figures() -> None:
    answers = [
        Answer(sent=0.0, arrivals=[1.0, 1.1, 1.3], num_events=3, num_tokens=3, error=None),
        Answer(sent=0.0, arrivals=[1.0, 1.1, 1.3], num_events=3, num_tokens=3, error=None),
        Answer(sent=0.0, num_tokens=0, error="HTTP/1.1 429"),
        Answer(sent=0.0, arrivals=[9.0], num_events=1, num_tokens=1, error=None),
    ]
    figures = summarize("inf", answers, 3, 0.25)
    assert figures.ttft_ms == pytest.approx((1000.0, 1000.0))
    assert figures.tpot_ms == pytest.approx((150.0, 150.0))
    assert figures.itl_ms == pytest.approx((150.0, 200.0), abs=1.01)
    assert figures.output_tokens_per_second == pytest.approx(6 / 1.3)
    assert (figures.num_failed, figures.errors, figures.events_per_token) == (2, ["1 tokens", "HTTP/1.1 429"], 1.0)
    lines = table(
        [figures], {"inf": {"ttft_ms": [1, 2], "tpot_ms": [3, 4], "itl_ms": [5, 6], "output_tokens_per_second": 7}}
    )
    assert "| quire | all at once | 1,000 / 1,000 | 150 / 150 |" in lines
    assert "| all at once | 1 / 2 | 3 / 4 | 5 / 6 | 7 |" in lines
    with pytest.raises(RuntimeError, match="No request was answered"):
        summarize("inf", answers[2:], 3, 0.25)
