"""Runs simulations: replicas behind a router, in as many processes as there are cores.

A router that looks at its replicas needs all of them in one process, where they take turns in virtual time. Under round
robin they do not meet, and each is a job of its own, as is every row of a comparison.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.simulation.cost_model import CostModel
from benchmarks.simulation.gpus import Gpu
from benchmarks.simulation.replica import Record, Replica
from benchmarks.simulation.routers import ROUND_ROBIN, ROUTERS
from benchmarks.simulation.trace import TraceRequest
from engine_core.config.engine_config import EngineConfig

_POLL_SECONDS = 0.1

OnEnded = Callable[[int], object]


@dataclass(frozen=True)
class Simulation:
    """One row of the result: what is simulated, under which name."""

    title: str
    engine: EngineConfig
    gpu: Gpu
    requests: Sequence[TraceRequest]
    num_replicas: int = 1
    router: str = ROUND_ROBIN


@dataclass(frozen=True)
class _Job:
    """Replicas that must be simulated together."""

    simulation: int
    engine: EngineConfig
    gpu: Gpu
    requests: Sequence[TraceRequest]
    num_replicas: int
    router: str


def run_all(
    simulations: Sequence[Simulation], on_ended: OnEnded, num_processes: int | None = None
) -> list[list[Record]]:
    """The records of each simulation's replicas. `on_ended` is called with how many more requests have ended."""
    jobs = [job for number, simulation in enumerate(simulations) for job in _split(number, simulation)]
    num_processes = min(len(jobs), num_processes or len(os.sched_getaffinity(0)))
    done = [_run(job, on_ended) for job in jobs] if num_processes == 1 else _run_apart(jobs, on_ended, num_processes)
    records: list[list[Record]] = [[] for _ in simulations]
    for job, replicas in zip(jobs, done, strict=True):
        records[job.simulation] += replicas
    return records


def _split(number: int, simulation: Simulation) -> list[_Job]:
    count, requests = simulation.num_replicas, simulation.requests
    if simulation.router != ROUND_ROBIN:
        return [_Job(number, simulation.engine, simulation.gpu, requests, count, simulation.router)]
    return [
        _Job(number, simulation.engine, simulation.gpu, requests[first::count], 1, ROUND_ROBIN)
        for first in range(count)
    ]


def _run(job: _Job, on_ended: OnEnded) -> list[Record]:
    engine = job.engine
    costs = CostModel(engine.model, engine.dtype, engine.scheduler, job.gpu)
    replicas = [Replica(engine, costs, on_ended) for _ in range(job.num_replicas)]
    if job.num_replicas == 1:
        for request in job.requests:
            replicas[0].add(request)
    else:
        num_cached_tokens = engine.cache.num_blocks * engine.cache.block_size // len(engine.layer_groups())
        router = ROUTERS[job.router](job.num_replicas, num_cached_tokens)
        for request in job.requests:
            for replica in replicas:
                replica.advance(request.arrival)
            replicas[router.pick(request, replicas)].add(request)
    return [replica.finish() for replica in replicas]


def _run_apart(jobs: list[_Job], on_ended: OnEnded, num_processes: int) -> list[list[Record]]:
    context = multiprocessing.get_context("spawn")
    ended = context.SimpleQueue()
    # A terminal's Ctrl-C reaches all processes: it is this one's to end the others, which inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    pool = context.Pool(num_processes, _set_queue, (ended.put,))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        results = pool.map_async(_run_and_tell, jobs, chunksize=1)
        while not results.ready():
            results.wait(_POLL_SECONDS)
            while not ended.empty():
                on_ended(ended.get())
        return results.get()


_tell: OnEnded
"""In a process of the pool: where ended requests are told."""


def _set_queue(tell: OnEnded) -> None:
    global _tell
    _tell = tell


def _run_and_tell(job: _Job) -> list[Record]:
    return _run(job, _tell)
