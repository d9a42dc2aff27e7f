"""Streamed tokens per second of one frontend process: HTTP, SSE, JSON, detokenization and the engine client together.

The core is a stub that gives every stream one token per step. The frontend runs on one CPU core, the stub and the
readers share another. At an offered rate that it can follow, a frontend sends one event per token; when something else
takes its core, the tokens of several steps leave in one event. Beside the delivered rate stands what an event costs in
CPU time, because that bounds the rate of single tokens.

    python -m benchmarks.bench_frontend --model demo_model
    python -m benchmarks.bench_frontend --model demo_model --with-parsers
"""

import argparse
import asyncio
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from tokenizers import Tokenizer

from benchmarks.stub_config import frontend_config, serve_config
from engine_core.ipc.heartbeat import Heartbeats
from frontend.launcher import Child, start_frontend
from frontend.supervisor.listeners import open_listeners

TEXT = " The garbage collector frees objects that are no longer reachable, and returns the number of them."
TARGET = 8000


@dataclass
class Load:
    """One measured run."""

    num_streams: int
    steps_per_second: float
    num_tokens: int
    """Tokens of each stream."""
    with_parsers: bool = False


class Reader(asyncio.Protocol):
    """Posts one chat request and counts events; parses nothing, so that it costs little."""

    def __init__(self, body: bytes, done: "asyncio.Future[None]") -> None:
        self.num_events = 0
        self.first = self.last = 0.0
        self._body = body
        self._done = done
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(self._body)
        transport.write(head + self._body)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.last = time.monotonic()
        if not self.first and b" 200 " not in data[:16]:
            self._done.set_exception(RuntimeError(f"The frontend answered {data[:500]!r}."))
        self.first = self.first or self.last
        self.num_events += data.count(b"data: {")
        self._tail = (self._tail + data)[-32:]
        if b"[DONE]" in self._tail and not self._done.done():
            self._done.set_result(None)
            self._transport.close()


async def read_streams(port: int, load: Load) -> tuple[float, int]:
    """Seconds from the first to the last event, and the number of events."""
    loop = asyncio.get_running_loop()
    fields = {"messages": [{"role": "user", "content": "Go on."}], "stream": True, "max_tokens": load.num_tokens}
    if load.with_parsers:
        fields["tools"] = [{"type": "function", "function": {"name": "look"}}]
    body = json.dumps(fields).encode()
    readers = []
    waits = []
    for _ in range(load.num_streams):
        done: asyncio.Future[None] = loop.create_future()
        reader = Reader(body, done)
        await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", port)  # type: ignore[misc]
        readers.append(reader)
        waits.append(done)
    async with asyncio.timeout(20 + 4 * load.num_tokens / load.steps_per_second):
        await asyncio.gather(*waits)
    return (
        max(reader.last for reader in readers) - min(reader.first for reader in readers),
        sum(reader.num_events for reader in readers),
    )


def measure(model_folder: Path, load: Load, cores: list[int]) -> None:
    """Starts stub and frontend, runs the load, prints one line."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    with tempfile.TemporaryDirectory() as folder:
        formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"} if load.with_parsers else {}
        config = serve_config(Path(folder), frontend_config(model_folder, **formats))
        config_file = Path(folder) / "config.json"
        config_file.write_bytes(msgspec.json.encode(config))
        command = [sys.executable, "-m", "benchmarks.stub_core", config.core_endpoint()]
        command += ["--steps-per-second", str(load.steps_per_second), "--token-ids", ",".join(map(str, token_ids))]
        command += ["--vocab-size", str(tokenizer.get_vocab_size())]
        stub = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert stub.stdout is not None
        assert stub.stdin is not None
        stub.stdout.readline()
        os.sched_setaffinity(stub.pid, cores[-1:])
        os.sched_setaffinity(0, cores[-1:])
        listener = open_listeners("127.0.0.1", 0, 1)[0]
        heartbeats = Heartbeats.create(2)
        child = start_frontend(str(config_file), 0, listener.fileno(), heartbeats, index=1)
        try:
            wait_ready(child)
            os.sched_setaffinity(child.pid, cores[:1])
            process = psutil.Process(child.pid)
            before = process.cpu_times()
            seconds, num_events = asyncio.run(read_streams(listener.getsockname()[1], load))
            after = process.cpu_times()
        finally:
            child.kill()
            child.wait(10)
            stub.stdin.close()
            stub.wait(10)
            listener.close()
    cpu = after.user + after.system - before.user - before.system
    tokens = load.num_streams * load.num_tokens
    print(
        f"{load.num_streams:4d} streams, offered {load.num_streams * load.steps_per_second:6.0f} tokens/s: "
        f"{tokens / seconds:6.0f} tokens/s delivered, {num_events / tokens:.2f} events a token, "
        f"frontend CPU {100 * cpu / seconds:3.0f} %, {1e6 * cpu / num_events:4.0f} us an event = "
        f"{num_events / cpu:6.0f} events/s on a full core"
    )


def wait_ready(child: Child) -> None:
    while not child.is_ready:
        if not select.select([child.link], [], [], 60)[0]:
            raise TimeoutError("The frontend was not ready within 60 s.")
        child.receive()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo_model"), help="a folder with a tokenizer")
    parser.add_argument("--streams", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--rate", type=float, default=1.2 * TARGET, help="offered tokens per second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument(
        "--with-parsers", action="store_true", help="requests have tools; calls and reasoning are sought"
    )
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    print(f"Target: {TARGET} streamed tokens/s per frontend process on one core.")
    for num_streams in arguments.streams:
        steps_per_second = arguments.rate / num_streams
        num_tokens = min(1800, int(steps_per_second * arguments.seconds))
        measure(arguments.model, Load(num_streams, steps_per_second, num_tokens, arguments.with_parsers), cores)


if __name__ == "__main__":
    main()
