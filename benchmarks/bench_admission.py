"""Hundreds of requests at once: how long the device waits for the engine core while it takes them in.

Runs the real loop with its real sockets and a client process that sends a work's requests (`works.py`) as fast as it
can. The device is the simulator's cost model, and its clock is the loop's own CPU time, so that other processes of the
machine do not count. A step whose plan comes after the one before it has ended leaves a gap.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time

import msgpack
import numpy as np
import zmq

from benchmarks.bench_engine_core import StubExecutor
from benchmarks.figures import markdown
from benchmarks.shapes import SHAPES
from benchmarks.simulate import engine_config, settings_of
from benchmarks.simulation.cost_model import CostModel
from benchmarks.simulation.gpus import GPUS
from benchmarks.works import WORKS, make_work
from engine_core import garbage
from engine_core.config.engine_config import EngineConfig
from engine_core.engine_core import EngineCore
from engine_core.ipc.control import ControlLink, Drain
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.messages import MAX_CLIENT_FRAME_BYTES, PROTOCOL_VERSION
from engine_core.ipc.sockets import bind_router
from engine_core.ipc.step import ENDED_NS, NUM_ROW_INITS, STARTED_NS, StepResult, StepShape
from engine_core.scheduler import Scheduler

_SHORT_NS = 20_000
"""Gaps of no more are the spinning of the loop itself."""


class ModelledDevice(StubExecutor):
    """Computes plans one after the other, each as long as the model says, while the loop goes on."""

    def __init__(self, config: EngineConfig, costs: CostModel) -> None:
        shape = StepShape(**config.step_capacities())
        super().__init__(shape, config.scheduler.num_slots)
        self._costs = costs
        self._num_computed = np.zeros(shape.max_num_seqs, np.int64)
        self._spans: list[tuple[int, int]] = []
        self._own_ns = 0
        """What this class itself has taken of the loop's time."""
        # Always readable: the loop spins while it waits, and so lets the time pass.
        self._awake = os.eventfd(1)
        self.gaps_ns: list[int] = []
        self.scheduler: Scheduler | None = None
        """Knows which blocks the sequences share: they are read from memory once."""

    def now(self) -> int:
        """The loop's CPU time."""
        return time.thread_time_ns() - self._own_ns

    def dispatch(self) -> None:
        now, before = self.now(), time.thread_time_ns()
        plan = self._plans[self._num_dispatched % len(self._plans)]
        super().dispatch()
        inits = plan.row_inits[: plan.header[NUM_ROW_INITS]]
        self._num_computed[inits["row"]] = inits["num_computed_tokens"]
        rows, counts = plan.rows[: plan.num_seqs], plan.num_query_tokens[: plan.num_seqs]
        self._num_computed[rows] += counts
        ends = self._num_computed[rows]
        assert self.scheduler is not None
        table = self.scheduler.table
        distinct = min(1.0, self.scheduler.kv.pool.num_owned / int(table.num_blocks[table.running].sum()))
        seconds = self._costs.step_seconds(ends, counts, int(plan.samples[: plan.num_seqs].sum()), distinct)
        start = max(now, self._spans[-1][1]) if self._spans else now
        self.gaps_ns.append(start - self._spans[-1][1] if self._spans else 0)
        self._spans.append((start, start + int(seconds * 1e9)))
        self._own_ns += time.thread_time_ns() - before

    def next_result(self) -> StepResult | None:
        if self._num_released == self._num_dispatched or self.now() < self._spans[self._num_released][1]:
            return None
        result = self._results[self._num_released % len(self._results)]
        result.header[STARTED_NS], result.header[ENDED_NS] = self._spans[self._num_released]
        return result

    def register(self, poller: zmq.Poller) -> None:
        poller.register(self._awake, zmq.POLLIN)

    def shutdown(self) -> None:
        os.close(self._awake)

    @property
    def seconds(self) -> float:
        """From the first step's beginning to the last one's end."""
        return (self._spans[-1][1] - self._spans[0][0]) / 1e9


def send_all(endpoint: str, work_name: str, vocab_size: int) -> None:
    """A client that adds all requests of the work and reads all frames."""
    work = make_work(work_name, vocab_size)
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(msgpack.packb({"type": "hello", "version": PROTOCOL_VERSION, "credit": 1024}))
    socket.recv()
    frames = []
    for handle, request in enumerate(work.requests):
        sampling = {"max_tokens": request.num_output_tokens, "ignore_eos": True, "temperature": 0.0, "seed": handle}
        ids = np.array(request.prompt, np.int32).tobytes()
        add = {"type": "add", "request_id": f"request-{handle}", "handle": handle, "prompt_token_ids": ids}
        frames.append(msgpack.packb({**add, "sampling": sampling}))
    for frame in frames:
        socket.send(frame)
    unfinished = len(frames)
    while unfinished:
        message = msgpack.unpackb(socket.recv())
        unfinished -= len(message.get("finished", ())) + len(message.get("errors", ()))
        socket.send(msgpack.packb({"type": "credit", "amount": 1}))


def measure(config: EngineConfig, work_name: str) -> ModelledDevice:
    """Runs the work to its end."""
    device = ModelledDevice(config, CostModel(config.model, config.dtype, config.scheduler, GPUS["h200"]))
    ours, theirs = ControlLink.pair()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/core.sock"
        router = bind_router(zmq.Context(), endpoint, MAX_CLIENT_FRAME_BYTES)
        core = EngineCore(config, device, router, theirs, Heartbeats.create(1), 0)
        device.scheduler = core.scheduler
        client = multiprocessing.get_context("spawn").Process(
            target=send_all, args=(endpoint, work_name, config.model.vocab_size)
        )
        client.start()
        stopper = threading.Thread(target=lambda: (client.join(), ours.send(Drain(timeout=0.0))))
        stopper.start()
        core.run()
        stopper.join()
    device.shutdown()
    return device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["qwen06b", "llama8b"])
    parser.add_argument("--work", choices=sorted(WORKS), default="prefix")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the server")
    arguments = parser.parse_args()
    garbage.hold()
    rows = [["shape", "s", "steps", "steps with a gap", "worst gap, ms", "all gaps, ms"]]
    for shape in arguments.shapes:
        config = engine_config({"shape": shape, **settings_of(arguments.set, "--set")}, GPUS["h200"])
        device = measure(config, arguments.work)
        gaps = [gap / 1e6 for gap in device.gaps_ns if gap > _SHORT_NS]
        rows.append(
            [
                shape,
                f"{device.seconds:.3f}",
                f"{len(device.gaps_ns)}",
                f"{len(gaps)}",
                f"{max(gaps, default=0.0):.2f}",
                f"{sum(gaps):.1f}",
            ]
        )
    print(markdown(rows))


if __name__ == "__main__":
    main()
