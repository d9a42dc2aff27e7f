"""Doorbells between an executor and a worker that is too busy to look at them."""

import os
import subprocess
import sys
import tempfile

import msgspec
import zmq

from benchmarks.bench_engine_core import engine_config
from engine_core.config.engine_config import FrontendConfig, ServeConfig
from engine_core.executors.local import LocalExecutor, _Worker
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.sockets import bind_pair, connect_pair
from engine_core.ipc.step import StepShape, result_layout

NUM_STEPS = 20_000


def serve_config(run_dir: str) -> ServeConfig:
    frontend = FrontendConfig(
        host="",
        port=0,
        num_frontends=1,
        served_model_names=("stub",),
        model_path="",
        chat_template=None,
        default_sampling={},
        max_body_bytes=1,
        strict_requests=False,
        drain_timeout=0.0,
        max_model_len=64,
        max_logprobs=0,
    )
    return ServeConfig(engine=engine_config(4, 64), frontend=frontend, run_dir=run_dir)


def test_bells_that_nobody_reads_stop_nothing() -> None:
    """A worker that always finds its next plan by looking at the ring never reads its bells."""
    with tempfile.TemporaryDirectory() as folder:
        context = zmq.Context()
        config = serve_config(folder)
        executor = LocalExecutor(config, "", 0, context, Heartbeats.create(2), 0)
        ours = bind_pair(context, config.worker_endpoint(0, 0))
        theirs = connect_pair(context, config.worker_endpoint(0, 0))
        reads_nothing = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert reads_nothing.stdin is not None
        executor._workers.append(_Worker(0, ours, reads_nothing, reads_nothing.stdin.fileno()))
        layout = result_layout(StepShape(**config.engine.step_capacities()))
        for sequence in range(1, NUM_STEPS + 1):
            plan = executor.plan_slot()
            assert plan is not None
            executor.dispatch()
            executor._plan_ring.release(0, sequence)
            executor._result_ring.publish(sequence)
            result = executor.next_result()
            assert result is not None
            executor.release_result()
        assert layout.num_bytes == len(executor._result_ring.slots[0])
        ours.close(linger=0)
        theirs.close(linger=0)
        executor._bell.close()
        reads_nothing.communicate()
        os.close(executor._workers.pop().pidfd)
        context.term()


def test_the_configuration_travels_as_json() -> None:
    config = serve_config("/run")
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServeConfig) == config
