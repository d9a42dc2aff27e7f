"""Starts a real worker process as an engine core would: rings and lifeline by descriptor, doorbells on a socket."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import zmq

from engine_core.config.engine_config import EngineConfig, FrontendConfig, ServeConfig
from engine_core.ipc.heartbeat import Heartbeats, worker_line
from engine_core.ipc.ring import Ring
from engine_core.ipc.sockets import bind_pair
from engine_core.ipc.step import StepPlan, StepResult, StepShape, late_layout, plan_layout, result_layout
from engine_core.ipc.worker_messages import Doorbell, WorkerMessage, decode_worker_message, encode_worker_message

TIMEOUT_MS = 60_000


def write_config(config: EngineConfig, run_dir: Path) -> tuple[ServeConfig, Path]:
    """As `quire serve` leaves it for its children."""
    frontend = FrontendConfig(
        host="127.0.0.1",
        port=0,
        num_frontends=1,
        served_model_names=("m",),
        model_path=config.model.path,
        chat_template=None,
        default_sampling={},
        max_body_bytes=1,
        strict_requests=False,
        drain_timeout=1,
        max_model_len=config.scheduler.max_model_len,
        max_logprobs=20,
    )
    serve, file = ServeConfig(engine=config, frontend=frontend, run_dir=str(run_dir)), run_dir / "config.json"
    file.write_bytes(msgspec.json.encode(serve))
    return serve, file


class WorkerProcess:
    """The engine core's end of one worker."""

    def __init__(self, config: EngineConfig, run_dir: Path) -> None:
        serve, file = write_config(config, run_dir)
        shape = StepShape(**config.step_capacities())
        plans, results, slots = plan_layout(shape), result_layout(shape), config.scheduler.num_slots
        self.plan_ring = Ring.create("plans", plans.num_bytes, slots, 1, late_layout(shape).num_bytes)
        self.result_ring = Ring.create("results", results.num_bytes, slots)
        self._plans = [StepPlan.over(plans, slot) for slot in self.plan_ring.slots]
        self._results = [StepResult.over(results, slot) for slot in self.result_ring.slots]
        self._context = zmq.Context()
        self._socket = bind_pair(self._context, serve.worker_endpoint(0, 0))
        self._bell = bind_pair(self._context, serve.bell_endpoint(0))
        reader, self._lifeline = os.pipe()
        self.late_bell = os.eventfd(0)
        command = [sys.executable, "-P", "-m", "gpu_workers", str(file), "--replica", "0", "--rank", "0"]
        command += ["--plan-fd", str(self.plan_ring.fd), "--result-fd", str(self.result_ring.fd)]
        command += ["--late-bell-fd", str(self.late_bell)]
        self.heartbeats = Heartbeats.create(2)
        command += ["--heartbeat-fd", str(self.heartbeats.fd), "--heartbeat-index", str(worker_line(core=0, rank=0))]
        self.process = subprocess.Popen(
            [*command, "--lifeline-fd", str(reader)],
            pass_fds=(self.plan_ring.fd, self.result_ring.fd, self.heartbeats.fd, reader, self.late_bell),
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(reader)

    def receive(self) -> WorkerMessage:
        assert self._socket.poll(TIMEOUT_MS), "the worker says nothing"
        return decode_worker_message(self._socket.recv())

    def plan(self, sequence: int) -> StepPlan:
        assert self.plan_ring.is_free(sequence)
        return self._plans[self.plan_ring.slot_of(sequence)]

    def send_plan(self, sequence: int) -> None:
        self.plan_ring.publish(sequence)
        self._socket.send(encode_worker_message(Doorbell(sequence=sequence)))

    def result(self, sequence: int) -> StepResult:
        """Waits for the result of `sequence`; the next call for another one frees it."""
        assert self._bell.poll(TIMEOUT_MS), "no bell rings"
        assert decode_worker_message(self._bell.recv()) == Doorbell(sequence=sequence)
        assert self.result_ring.is_published(sequence)
        self.result_ring.release(0, sequence - 1)
        return self._results[self.result_ring.slot_of(sequence)]

    def close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def stop(self) -> tuple[int, str]:
        """Closes the lifeline and returns the exit code and what went to stderr."""
        self.close_lifeline()
        _, errors = self.process.communicate(timeout=TIMEOUT_MS / 1000)
        self._context.destroy(linger=0)
        os.close(self.late_bell)
        for memory in (self.plan_ring, self.result_ring, self.heartbeats):
            os.close(memory.fd)
        return self.process.returncode, errors.decode()
