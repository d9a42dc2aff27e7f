"""One worker process: takes plans from one ring, runs them, puts results into another, until its parent is gone.

Knows the rings, the doorbell socket and the lifeline; what a step does is the model runner's business.
"""

import time
from dataclasses import dataclass

import zmq

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import StepPlan, StepResult, StepShape, late_layout, plan_layout, result_layout
from engine_core.ipc.worker_messages import (
    Doorbell,
    WorkerFailed,
    WorkerMessage,
    WorkerProgress,
    WorkerReady,
    encode_worker_message,
)
from gpu_workers.model_runner import ModelRunner
from gpu_workers.threads import keep_freed_memory

PROGRESS_INTERVAL_NS = 50_000_000


class ParentGone(Exception):
    """The lifeline was closed: nobody is left to work for."""


@dataclass(frozen=True, slots=True)
class WorkerLinks:
    """What connects a worker with its engine core."""

    socket: zmq.Socket[bytes]
    plan_ring: Ring
    result_ring: Ring
    lifeline_fd: int
    rank: int
    heartbeats: Heartbeats
    heartbeat_index: int

    @classmethod
    def open(
        cls,
        config: EngineConfig,
        socket: zmq.Socket[bytes],
        plan_fd: int,
        result_fd: int,
        lifeline_fd: int,
        rank: int,
        heartbeats: Heartbeats,
        heartbeat_index: int,
    ) -> "WorkerLinks":
        """Maps the rings behind inherited descriptors."""
        shape = StepShape(**config.step_capacities())
        num_slots = config.scheduler.steps_in_flight + 2
        plan_bytes, late_bytes = plan_layout(shape).num_bytes, late_layout(shape).num_bytes
        plans = Ring(plan_fd, plan_bytes, num_slots, config.parallel.world_size, late_bytes)
        results = Ring(result_fd, result_layout(shape).num_bytes, num_slots, num_readers=1)
        return cls(socket, plans, results, lifeline_fd, rank, heartbeats, heartbeat_index)

    def send(self, message: WorkerMessage) -> None:
        self.socket.send(encode_worker_message(message), copy=True)

    def report_failure(self, message: str, exit_code: int) -> None:
        """The worker's last word; waits a moment for it to leave."""
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.send(WorkerFailed(rank=self.rank, message=message, exit_code=exit_code))


class Worker:
    def __init__(self, config: EngineConfig, links: WorkerLinks) -> None:
        shape = StepShape(**config.step_capacities())
        self._links = links
        self._config = config
        self._plans = [StepPlan.over(plan_layout(shape), slot) for slot in links.plan_ring.slots]
        self._results = [StepResult.over(result_layout(shape), slot) for slot in links.result_ring.slots]
        self._poller = zmq.Poller()
        self._poller.register(links.socket, zmq.POLLIN)
        self._poller.register(links.lifeline_fd, zmq.POLLIN | zmq.POLLERR)
        self._reported_ns = 0

    def run(self) -> None:
        """Loads, reports ready, serves. Raises `ParentGone`, or `ConfigError` while it starts."""
        self._runner = ModelRunner(self._config, tp_rank=self._links.rank)
        self._runner.load(self._report_weights)
        self._check_lifeline()
        if self._config.device == "cpu":
            keep_freed_memory()
        self._runner.start(self._report_warm_up)
        ready = WorkerReady(
            rank=self._links.rank,
            weight_bytes=self._runner.weight_bytes,
            kv_cache_bytes=self._runner.kv_cache_bytes,
        )
        self._links.send(ready)
        sequence = 1
        while True:
            self._links.plan_ring.wait(sequence, self._sleep)
            self._beat(sequence - 1, num_pending=1)
            self._step(sequence)
            self._beat(sequence, num_pending=0)
            sequence += 1

    def _beat(self, num_finished: int, num_pending: int) -> None:
        """A sign of life: steps finished so far, and taken but not finished."""
        self._links.heartbeats.beat(self._links.heartbeat_index, num_finished, num_pending)

    def _step(self, sequence: int) -> None:
        links, runner = self._links, self._runner
        started = time.monotonic_ns()
        step = runner.prepare(self._plans[links.plan_ring.slot_of(sequence)])
        links.plan_ring.release(links.rank, sequence)
        output = runner.sample(step, runner.forward(step))
        assert links.result_ring.is_free(sequence), "the engine core planned more steps than there are slots"
        runner.publish(step, output, self._results[links.result_ring.slot_of(sequence)], started)
        links.result_ring.publish(sequence)
        links.send(Doorbell(sequence=sequence))

    def _sleep(self) -> None:
        """Until a doorbell rings; raises `ParentGone` when the lifeline closes."""
        events = dict(self._poller.poll())
        if self._links.lifeline_fd in events:
            raise ParentGone
        # Bells only wake: what has come is what the ring says. Those of plans found by spinning are stale by now.
        while self._links.socket.poll(0):
            self._links.socket.recv()

    def _report_weights(self, done: int, total: int) -> None:
        now = time.monotonic_ns()
        if done == total or now - self._reported_ns >= PROGRESS_INTERVAL_NS:
            self._reported_ns = now
            self._check_lifeline()
            self._links.send(WorkerProgress(rank=self._links.rank, stage="weights", done=done, total=total))

    def _report_warm_up(self, done: int, total: int) -> None:
        self._check_lifeline()
        message = WorkerProgress(rank=self._links.rank, stage="warm-up", done=done, total=total, unit="steps")
        self._links.send(message)

    def _check_lifeline(self) -> None:
        if self._links.lifeline_fd in dict(self._poller.poll(0)):
            raise ParentGone
