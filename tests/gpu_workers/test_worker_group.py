"""Several workers of one replica: all read each plan, one publishes."""

from pathlib import Path

import pytest
import zmq

from engine_core.config.engine_config import ParallelConfig
from engine_core.executors.local import LocalExecutor
from engine_core.ipc.heartbeat import Heartbeats, core_line, worker_line
from engine_core.ipc.step import StepResult
from tests.gpu_workers.plan_driver import PlanBuilder, Request
from tests.gpu_workers.small_models import engine_config, save_model
from tests.gpu_workers.worker_process import TIMEOUT_MS, write_config

NUM_STEPS = 20
"""More than the rings have slots."""


def wait_for_result(executor: LocalExecutor, poller: zmq.Poller) -> StepResult:
    while (result := executor.next_result()) is None:
        assert poller.poll(TIMEOUT_MS), "no bell rings"
        executor.check()
    return result


def open_rings(pid: int) -> set[str]:
    """Names of the rings of results that a process has."""
    links = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return {link.removeprefix("/memfd:").split()[0] for link in links if "results" in link}


@pytest.mark.slow
def test_one_worker_of_two_publishes(tmp_path: Path) -> None:
    save_model(tmp_path)
    config = engine_config(tmp_path, parallel=ParallelConfig(tensor_parallel_size=2), num_threads=1)
    serve, file = write_config(config, tmp_path)
    context, heartbeats = zmq.Context(), Heartbeats.create(core_line(1, world_size=2))
    executor = LocalExecutor(serve, str(file), 0, context, heartbeats, heartbeat_index=0)
    try:
        assert executor.start(lambda stage, done, total, unit: None, interrupts=[])
        poller = zmq.Poller()
        executor.register(poller)
        rings = [open_rings(worker.process.pid) for worker in executor._workers]
        assert rings == [{"quire-results"}, {"quire-unread-results"}]
        for sequence in range(1, NUM_STEPS + 1):
            while (plan := executor.plan_slot()) is None:  # the other worker has not read so far
                executor.check()
            builder = PlanBuilder(plan, sequence)
            if sequence == 1:
                builder.start_row(Request([5, 9, 2], 1, row=4))
                for index in range(10):
                    builder.add_blocks(4, index, [index])
            builder.finish([(4, 3, [5, 9, 2], True) if sequence == 1 else (4, 1, [], True)])
            executor.dispatch()
            result = wait_for_result(executor, poller)
            assert (result.step_id, result.num_seqs, int(result.num_sampled[0])) == (sequence, 1, 1)
            executor.release_result()
        while any(heartbeats.read(worker_line(0, rank)).progress < NUM_STEPS for rank in range(2)):
            executor.check()
    finally:
        executor.shutdown()
        context.destroy(linger=0)
