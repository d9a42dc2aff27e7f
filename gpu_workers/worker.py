"""One worker process: takes plans from one ring, runs them, puts results into another, until its parent is gone.

Knows the rings, the sockets and the lifeline; what a step does is the runner's business. A runner may queue a step and
finish it later, on a thread of its own: from then on the doorbells of results are that thread's, and have a socket of
their own because ZeroMQ's sockets belong to one thread at a time.
"""

import os
import time
from dataclasses import dataclass

import zmq

from engine_core.config.engine_config import EngineConfig, WorkerPlace
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import StepShape, late_layout, plan_layout, result_layout
from engine_core.ipc.worker_messages import (
    Doorbell,
    WorkerFailed,
    WorkerMessage,
    WorkerProgress,
    WorkerReady,
    encode_worker_message,
)
from gpu_workers.running.runner import Runner
from gpu_workers.threads import keep_freed_memory, share_interpreter

PROGRESS_INTERVAL_NS = 50_000_000


class ParentGone(Exception):
    """The lifeline was closed: nobody is left to work for."""


@dataclass(frozen=True, slots=True)
class WorkerLinks:
    """What connects a worker with its engine core."""

    socket: zmq.Socket[bytes]
    bell: zmq.Socket[bytes] | None
    """Where the worker that publishes rings; the others have none."""
    plan_ring: Ring
    result_ring: Ring
    """A worker that does not publish has its own, which nobody reads."""
    lifeline_fd: int
    place: WorkerPlace
    heartbeats: Heartbeats
    heartbeat_index: int
    late_bell_fd: int
    """An eventfd, rung when the late part of a plan is there."""

    @classmethod
    def open(
        cls,
        config: EngineConfig,
        socket: zmq.Socket[bytes],
        bell: zmq.Socket[bytes] | None,
        plan_fd: int,
        result_fd: int | None,
        lifeline_fd: int,
        place: WorkerPlace,
        heartbeats: Heartbeats,
        heartbeat_index: int,
        late_bell_fd: int,
    ) -> "WorkerLinks":
        """Maps the rings behind inherited descriptors."""
        shape = StepShape(**config.step_capacities())
        num_slots = config.scheduler.num_slots
        plan_bytes, late_bytes = plan_layout(shape).num_bytes, late_layout(shape).num_bytes
        plans = Ring(plan_fd, plan_bytes, num_slots, config.parallel.world_size, late_bytes)
        result_bytes = result_layout(shape).num_bytes
        if result_fd is None:
            results = Ring.create("quire-unread-results", result_bytes, num_slots)
        else:
            results = Ring(result_fd, result_bytes, num_slots)
        return cls(socket, bell, plans, results, lifeline_fd, place, heartbeats, heartbeat_index, late_bell_fd)

    def send(self, message: WorkerMessage) -> None:
        self.socket.send(encode_worker_message(message), copy=True)

    def report_failure(self, message: str, exit_code: int) -> None:
        """The worker's last word; waits a moment for it to leave."""
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.send(WorkerFailed(rank=self.place.rank, message=message, exit_code=exit_code))


class Worker:
    def __init__(self, config: EngineConfig, links: WorkerLinks) -> None:
        self._links = links
        self._config = config
        self._poller = zmq.Poller()
        self._poller.register(links.socket, zmq.POLLIN)
        self._poller.register(links.lifeline_fd, zmq.POLLIN | zmq.POLLERR)
        self._poller.register(links.late_bell_fd, zmq.POLLIN)
        self._reported_ns = 0
        self._num_taken = 0
        self._num_finished = 0

    def run(self) -> None:
        """Loads, reports ready, serves. Raises `ParentGone`, or `ConfigError` while it starts."""
        links = self._links
        self._runner = Runner(self._config, links.place)
        self._runner.load(self._report_weights)
        self._check_lifeline()
        if self._config.device == "cpu":
            keep_freed_memory()
        else:
            share_interpreter()
        self._runner.start(self._report_warm_up)
        self._runner.open(links.plan_ring, links.result_ring, self._finished, self._sleep)
        self._poller.register(self._runner.failure_fd, zmq.POLLIN)
        ready = WorkerReady(
            rank=links.place.rank,
            weight_bytes=self._runner.weight_bytes,
            kv_cache_bytes=self._runner.kv_cache_bytes,
            device_free_bytes=self._runner.device_free_bytes,
        )
        links.send(ready)
        sequence = 1
        while True:
            links.plan_ring.wait(sequence, self._sleep)
            self._num_taken = sequence
            self._beat(self._num_finished)
            self._runner.step(sequence)
            sequence += 1

    def _beat(self, num_finished: int) -> None:
        """A sign of life: steps finished so far, and taken but not finished."""
        links = self._links
        links.heartbeats.beat(links.heartbeat_index, num_finished, self._num_taken - num_finished)

    def _finished(self, sequence: int) -> None:
        """A step's result is written: its plan's slot is free. Who publishes tells the engine core."""
        links = self._links
        self._num_finished = sequence
        self._beat(sequence)
        links.plan_ring.release(links.place.rank, sequence)
        if links.bell is None:
            return
        assert links.result_ring.is_free(sequence), "the engine core planned more steps than there are slots"
        links.result_ring.publish(sequence)
        links.bell.send(encode_worker_message(Doorbell(sequence=sequence)), copy=True)

    def _sleep(self, timeout_ms: int | None = None) -> None:
        """Until a doorbell rings or the time is over; raises `ParentGone` when the lifeline closes."""
        events = dict(self._poller.poll(timeout_ms))
        if self._links.lifeline_fd in events:
            raise ParentGone
        if self._runner.failure_fd in events:
            self._runner.check()
        # Bells only wake: what has come is what the ring says. Those of plans found by spinning are stale by now.
        while self._links.socket.poll(0):
            self._links.socket.recv()
        if self._links.late_bell_fd in events:
            os.eventfd_read(self._links.late_bell_fd)

    def _report_weights(self, done: int, total: int) -> None:
        now = time.monotonic_ns()
        if done == total or now - self._reported_ns >= PROGRESS_INTERVAL_NS:
            self._reported_ns = now
            self._check_lifeline()
            self._links.send(WorkerProgress(rank=self._links.place.rank, stage="weights", done=done, total=total))

    def _report_warm_up(self, done: int, total: int) -> None:
        self._check_lifeline()
        message = WorkerProgress(rank=self._links.place.rank, stage="warm-up", done=done, total=total, unit="steps")
        self._links.send(message)

    def _check_lifeline(self) -> None:
        if self._links.lifeline_fd in dict(self._poller.poll(0)):
            raise ParentGone
