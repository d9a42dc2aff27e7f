"""A client process that offers streamed completions at given times and notes when their tokens arrive.

A `Load` in JSON comes on the first line of stdin; `ready` is printed once all bodies are made; the next line is the
time (`time.monotonic`) at which the load begins; the `Answer`s are printed as one line of JSON. Sockets are plain
asyncio protocols and of each event only text and usage are decoded, so that a client costs little; `cpu_share` tells
how busy it was.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field

import msgspec


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_DECODER = msgspec.json.Decoder(_Chunk)


class Load(msgspec.Struct):
    """What one client process does."""

    host: str
    port: int
    model: str
    vocab_size: int
    num_in: int
    num_out: int
    seed: str
    """Of the prompts' token ids."""
    offsets: dict[int, float]
    """Request number to seconds after the beginning."""
    timeout: float
    """Seconds after which what is missing counts as failed."""


@dataclass
class Answer:
    """When things happened, in `time.monotonic` seconds."""

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """Of each piece of data that carried at least one event with text."""
    num_events: int = 0
    """Events with text; a server that merges tokens sends fewer than there are tokens."""
    num_tokens: int = 0
    """As the server counts them."""
    error: str | None = "no end"


class Stream(asyncio.Protocol):
    """Sends one request and reads its event stream."""

    def __init__(self, request: bytes, done: "asyncio.Future[None]") -> None:
        self.answer = Answer()
        self._request = request
        self._done = done
        self._rest = b""
        self._has_status = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.answer.sent = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        # An event is one line, whatever chunks and packets it comes in: the sizes of chunks are lines of their own.
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and not self._has_status:
            self._has_status = True
            if b" 200 " not in lines[0]:
                self._end(lines[0].decode(errors="replace").strip())
                return
        num_events = 0
        for line in lines:
            if line.startswith(b"data: {"):
                chunk = _DECODER.decode(line[6:])
                num_events += bool(chunk.choices and chunk.choices[0].text)
                if chunk.usage is not None:
                    self.answer.num_tokens = chunk.usage.completion_tokens
            elif line.startswith(b"data: [DONE]"):
                self._end(None)
        if num_events:
            self.answer.num_events += num_events
            self.answer.arrivals.append(now)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._end(f"connection lost: {error}")

    def close(self) -> None:
        self._transport.close()

    def _end(self, error: str | None) -> None:
        self.answer.error = error
        if not self._done.done():
            self._done.set_result(None)
        self._transport.close()


def http_request(load: Load, number: int) -> bytes:
    """The request's bytes; its prompt is drawn from seed and number."""
    rng = random.Random(f"{load.seed} {number}")
    body = json.dumps(
        {
            "model": load.model,
            "prompt": [rng.randrange(load.vocab_size) for _ in range(load.num_in)],
            "max_tokens": load.num_out,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {load.host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def run_load(load: Load, requests: dict[int, bytes], begin: float) -> list[Answer]:
    """Offers every request at its time and waits for all answers, or for the timeout."""
    loop = asyncio.get_running_loop()

    async def one(number: int) -> Answer:
        await asyncio.sleep(begin + load.offsets[number] - time.monotonic())
        done: asyncio.Future[None] = loop.create_future()
        try:
            _, stream = await loop.create_connection(lambda: Stream(requests[number], done), load.host, load.port)
        except OSError as error:
            return Answer(error=f"no connection: {error}")
        remaining = begin + load.timeout - time.monotonic()
        await asyncio.wait([done], timeout=max(0.0, remaining))
        stream.close()
        return stream.answer

    return await asyncio.gather(*map(one, load.offsets))


def main() -> None:
    load = msgspec.json.decode(sys.stdin.readline(), type=Load)
    requests = {number: http_request(load, number) for number in load.offsets}
    print("ready", flush=True)
    begin = float(sys.stdin.readline())
    cpu, wall = time.process_time(), time.monotonic()
    answers = asyncio.run(run_load(load, requests, begin))
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    print(json.dumps({"cpu_share": share, "answers": [asdict(answer) for answer in answers]}), flush=True)


if __name__ == "__main__":
    main()
