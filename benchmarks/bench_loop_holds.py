"""How long one request holds up a frontend's event loop, and what others feel of it.

A real frontend before a stub core. Each heavy request is sent some times, one after the other; meanwhile another
process asks for `/health` over and over. The hold is measured inside the frontend (`loop_watch.py`).

    python -m benchmarks.bench_loop_holds
    python -m benchmarks.bench_loop_holds --only tools schema
"""

import argparse
import http.client
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from benchmarks.bench_frontend import wait_ready
from benchmarks.environment import process_environment
from benchmarks.heavy_requests import HeavyRequest, heavy_requests
from benchmarks.loop_watch import LoopFigures
from benchmarks.stub_config import frontend_config, serve_config
from benchmarks.stub_core import Reply, StubCore
from engine_core.config.engine_config import ServeConfig
from engine_core.ipc.heartbeat import Heartbeats
from frontend.launcher import Child
from frontend.supervisor.listeners import open_listeners

MAX_MODEL_LEN = 131_072
PROBE_SECONDS = 0.005
"""Between two questions of the other client."""
PAUSE_SECONDS = 0.1
"""Before each heavy request."""
ANSWER_SECONDS = 120.0


def probe(port: int) -> None:
    """The other client: asks for `/health` until its standard input ends, and prints the latencies in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    latencies = []
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], PROBE_SECONDS)[0]:
        start = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        latencies.append(time.perf_counter() - start)
    print(json.dumps(latencies), flush=True)


class Probe:
    """That client as a process of its own, so that the sender's work does not count."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_loop_holds", "--probe", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def latencies(self) -> list[float]:
        """Ends it."""
        written, _ = self._process.communicate("\n", timeout=ANSWER_SECONDS)
        latencies: list[float] = json.loads(written)
        return latencies


class WatchedServer:
    """A stub core and a frontend whose loop is watched, with all that the heavy requests need."""

    def __init__(self, model: Path, folder: Path) -> None:
        frontend = frontend_config(
            model,
            max_model_len=MAX_MODEL_LEN,
            max_body_bytes=16 * 2**20,
            tool_call_parser="hermes",
            trust_request_chat_template=True,
        )
        config = serve_config(folder, frontend)
        self._core = _stub_core(config, model).start()
        self.figures = LoopFigures(folder / "figures")
        self._listener = open_listeners("127.0.0.1", 0, 1)[0]
        self.port: int = self._listener.getsockname()[1]
        self._child = _start_frontend(config, folder, self._listener, folder / "figures")

    def __enter__(self) -> "WatchedServer":
        wait_ready(self._child)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait(10)
        self._core.stop()
        self._listener.close()

    def send(self, request: HeavyRequest) -> float:
        """Seconds to its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        body = None if request.body is None else msgspec.json.encode(request.body)
        start = time.perf_counter()
        connection.request("GET" if body is None else "POST", request.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - start
        connection.close()
        if response.status != request.status:
            raise RuntimeError(f"{request.name}: {response.status} {answer[:300]!r}")
        return seconds


def _stub_core(config: ServeConfig, model: Path) -> StubCore:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode("Yes, it does.", add_special_tokens=False).ids
    return StubCore(
        config.core_endpoint(),
        lambda add: Reply(token_ids=ids, endless=True, num_top=20),
        max_model_len=MAX_MODEL_LEN,
        vocab_size=tokenizer.get_vocab_size(),
        utilities={"metrics": lambda arguments: "# TYPE quire_steps counter\nquire_steps 3\n" * 100},
    )


def _start_frontend(config: ServeConfig, folder: Path, listener: socket.socket, figures: Path) -> Child:
    config_file = folder / "config.json"
    config_file.write_bytes(msgspec.json.encode(config))
    heartbeats = Heartbeats.create(2)
    arguments = [str(figures), str(config_file), "--index", "0", "--listen-fd", str(listener.fileno())]
    arguments += ["--heartbeat-fd", str(heartbeats.fd), "--heartbeat-index", "1"]
    return Child("frontend", "benchmarks.loop_watch", arguments, [listener.fileno(), heartbeats.fd])


def measure(server: WatchedServer, request: HeavyRequest, rounds: int) -> None:
    """Sends one heavy request some times and prints a line."""
    other = Probe(server.port)
    server.figures.reset()
    try:
        seconds = []
        for _ in range(rounds):
            time.sleep(PAUSE_SECONDS)
            seconds.append(server.send(request))
    finally:
        latencies = np.array(other.latencies()) * 1e3
    hold, cpu, collection = (figure * 1e3 for figure in server.figures.read())
    print(
        f"| {request.name} | {np.median(seconds) * 1e3:.0f} | {hold:.1f} | {cpu:.1f} | {collection:.1f} "
        f"| {np.percentile(latencies, 50):.1f} | {np.percentile(latencies, 99):.1f} | {latencies.max():.1f} |",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo_model"), help="a folder with a tokenizer")
    parser.add_argument("--rounds", type=int, default=5, help="how often each request is sent")
    parser.add_argument("--only", nargs="*", default=[], help="words, one of which a request's name has to have")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.probe is not None:
        probe(parsed.probe)
        return
    os.environ.update(process_environment())  # the frontend that is started here finds this source tree by it
    wanted = [one for one in heavy_requests() if not parsed.only or any(word in one.name for word in parsed.only)]
    with tempfile.TemporaryDirectory() as folder, WatchedServer(parsed.model, Path(folder)) as server:
        print("| request | answered in, ms | longest hold | in CPU time | collection | /health p50 | p99 | longest |")
        print("|---|---|---|---|---|---|---|---|")
        for request in wanted:
            measure(server, request, parsed.rounds)


if __name__ == "__main__":
    main()
