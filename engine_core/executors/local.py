"""Workers as child processes of the engine core on the same host, fed through shared memory."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import zmq

from engine_core.config.engine_config import ServeConfig, WorkerPlace
from engine_core.executors.base import Executor, ExecutorFailed, ProgressCallback
from engine_core.ipc.heartbeat import Heartbeats, worker_line
from engine_core.ipc.ring import Ring
from engine_core.ipc.sockets import bind_pair
from engine_core.ipc.step import StepPlan, StepResult, StepShape, late_layout, plan_layout, result_layout
from engine_core.ipc.worker_messages import (
    Doorbell,
    WorkerFailed,
    WorkerProgress,
    WorkerReady,
    decode_worker_message,
    encode_worker_message,
)

_GRACE_SECONDS = 5.0
"""How long a worker may take to end once its lifeline is cut, before it is killed."""


class _Worker:
    """One worker process with its socket, its lifeline and a descriptor that tells its death."""

    def __init__(self, rank: int, socket: zmq.Socket, process: "subprocess.Popen[bytes]", lifeline: int) -> None:
        self.rank = rank
        self.socket = socket
        self.process = process
        self.lifeline = lifeline
        self.pidfd = os.pidfd_open(process.pid)
        self.is_ready = False

    def close(self) -> None:
        """Cuts the lifeline, waits for the end, releases everything."""
        os.close(self.lifeline)
        try:
            self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.pidfd)
        self.socket.close()


class LocalExecutor(Executor):
    """One ring of plans that all workers read, one ring of results that the worker whose place publishes has."""

    def __init__(
        self,
        config: ServeConfig,
        config_path: str,
        replica: int,
        context: zmq.Context,
        heartbeats: Heartbeats,
        heartbeat_index: int,
    ) -> None:
        """`heartbeat_index` is the engine core's own line; those of its workers follow it."""
        self._config = config
        self._heartbeats = heartbeats
        self._heartbeat_index = heartbeat_index
        self._config_path = config_path
        self._replica = replica
        self._context = context
        shape = StepShape(**config.engine.step_capacities())
        plans, results = plan_layout(shape), result_layout(shape)
        num_slots = config.engine.scheduler.num_slots
        world_size = config.engine.parallel.world_size
        late_bytes = late_layout(shape).num_bytes
        self._plan_ring = Ring.create("quire-plans", plans.num_bytes, num_slots, world_size, late_bytes)
        self._result_ring = Ring.create("quire-results", results.num_bytes, num_slots)
        self._plans = [StepPlan.over(plans, slot) for slot in self._plan_ring.slots]
        self._results = [StepResult.over(results, slot) for slot in self._result_ring.slots]
        self._next_plan = 1
        self._next_result = 1
        self._workers: list[_Worker] = []
        self._bell = bind_pair(context, config.bell_endpoint(replica))
        """Rings for results."""
        self.late_bells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(world_size)]
        """Rung by whoever writes late parts, one for each worker."""
        self.device_free_bytes = 0
        """What the last worker to become ready left of its device; 0 on a CPU."""

    def start(self, on_progress: ProgressCallback, interrupts: Sequence[int]) -> bool:
        for place in self._config.engine.places(self._replica):
            self._workers.append(self._spawn(place))
        poller = zmq.Poller()
        self.register(poller)
        for fd in interrupts:
            poller.register(fd, zmq.POLLIN)
        while not all(worker.is_ready for worker in self._workers):
            events = dict(poller.poll())
            if any(fd in events for fd in interrupts):
                return False
            self._receive(on_progress)
        return True

    def _spawn(self, place: WorkerPlace) -> _Worker:
        rank = place.rank
        socket = bind_pair(self._context, self._config.worker_endpoint(self._replica, rank))
        theirs, ours = os.pipe()
        fds = {
            "plan-fd": self._plan_ring.fd,
            "lifeline-fd": theirs,
            "heartbeat-fd": self._heartbeats.fd,
            "late-bell-fd": self.late_bells[rank],
        }
        if place.publishes:
            fds["result-fd"] = self._result_ring.fd
        line = worker_line(self._heartbeat_index, rank)
        arguments = ["--replica", str(self._replica), "--rank", str(rank), "--heartbeat-index", str(line)]
        for name, fd in fds.items():
            arguments += [f"--{name}", str(fd)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_workers", self._config_path, *arguments],
            pass_fds=list(fds.values()),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        return _Worker(rank, socket, process, ours)

    @property
    def plan_fd(self) -> int:
        """The ring of plans, for whoever writes late parts."""
        return self._plan_ring.fd

    def plan_slot(self) -> StepPlan | None:
        if not self._plan_ring.is_free(self._next_plan):
            return None
        return self._plans[self._plan_ring.slot_of(self._next_plan)]

    def dispatch(self) -> None:
        self._plan_ring.publish(self._next_plan)
        bell = encode_worker_message(Doorbell(sequence=self._next_plan))
        self._next_plan += 1
        for worker in self._workers:
            # A worker that never sleeps leaves its bells unread; where the queue is full of them one more says nothing.
            with contextlib.suppress(zmq.Again):
                worker.socket.send(bell, zmq.NOBLOCK)

    def next_result(self) -> StepResult | None:
        if not self._result_ring.is_published(self._next_result):
            return None
        return self._results[self._result_ring.slot_of(self._next_result)]

    def release_result(self) -> None:
        self._result_ring.release(0, self._next_result)
        self._next_result += 1

    def register(self, poller: zmq.Poller) -> None:
        poller.register(self._bell, zmq.POLLIN)
        for worker in self._workers:
            poller.register(worker.socket, zmq.POLLIN)
            poller.register(worker.pidfd, zmq.POLLIN)

    def check(self) -> None:
        self._receive(lambda stage, done, total, unit: None)

    def _receive(self, on_progress: ProgressCallback) -> None:
        """Takes in all messages of all workers; a dead worker's last words come before the news of its death."""
        while self._bell.poll(0):
            self._bell.recv()  # it has woken us; what is there is what the ring says
        for worker in self._workers:
            gone = worker.process.poll()
            while worker.socket.poll(0):
                match decode_worker_message(worker.socket.recv()):
                    case WorkerProgress(rank=0, stage=stage, done=done, total=total, unit=unit):
                        on_progress(stage, done, total, unit)
                    case WorkerReady(device_free_bytes=device_free_bytes):
                        worker.is_ready = True
                        self.device_free_bytes = device_free_bytes
                    case WorkerFailed(message=message, exit_code=exit_code):
                        raise ExecutorFailed(message, exit_code)
            if gone is not None:
                raise ExecutorFailed(f"Worker {worker.rank} of replica {self._replica} died ({_cause(gone)}).")

    def shutdown(self) -> None:
        while self._workers:
            self._workers.pop().close()
        self._bell.close()


def _cause(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
