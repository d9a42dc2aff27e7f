"""CPU time of the engine core per step, with a stub in place of the workers: all between two steps but the model.

Runs the real loop with its real sockets, `--num-seqs` requests that all decode, and a client in a process of its own
that reads what a frontend would read. Prints the median over windows of generated tokens: it must not grow with them.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from typing import get_args

import msgpack
import numpy as np
import zmq

from engine_core import garbage
from engine_core.config.engine_config import CacheConfig, EngineConfig, PolicyName, SchedulerConfig
from engine_core.config.model_config import ModelConfig
from engine_core.engine_core import EngineCore
from engine_core.executors.base import Executor, ProgressCallback
from engine_core.ipc.control import ControlLink, Drain
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.messages import MAX_CLIENT_FRAME_BYTES, PROTOCOL_VERSION
from engine_core.ipc.sockets import bind_router
from engine_core.ipc.step import StepPlan, StepResult, StepShape, plan_layout, result_layout

PROMPT_TOKENS = 32
BLOCK_SIZE = 16


class StubExecutor(Executor):
    """Each row samples token 7. Results are there at once, but one in a turn of the loop, as steps end one by one.

    Notes the loop's CPU time at each dispatch."""

    def __init__(self, shape: StepShape, num_slots: int) -> None:
        plans, results = plan_layout(shape), result_layout(shape)
        self._plans = [StepPlan.over(plans, bytearray(plans.num_bytes)) for _ in range(num_slots)]
        self._results = [StepResult.over(results, bytearray(results.num_bytes)) for _ in range(num_slots)]
        self._num_dispatched = self._num_released = 0
        self._has_given = False
        self.cpu_ns: list[int] = []
        self.num_seqs: list[int] = []

    def start(self, on_progress: ProgressCallback, interrupts: object) -> bool:
        return True

    def plan_slot(self) -> StepPlan | None:
        free = self._num_dispatched - self._num_released < len(self._plans)
        return self._plans[self._num_dispatched % len(self._plans)] if free else None

    def dispatch(self) -> None:
        index = self._num_dispatched % len(self._plans)
        plan, result = self._plans[index], self._results[index]
        result.header[:2] = plan.header[:2]
        result.num_sampled[:] = plan.samples
        result.sampled[:] = 7
        self._num_dispatched += 1
        self.cpu_ns.append(time.thread_time_ns())
        self.num_seqs.append(plan.num_seqs)

    def next_result(self) -> StepResult | None:
        has_given, self._has_given = self._has_given, False
        if has_given or self._num_released == self._num_dispatched:
            return None
        return self._results[self._num_released % len(self._results)]

    def release_result(self) -> None:
        self._num_released += 1
        self._has_given = True

    def register(self, poller: zmq.Poller) -> None:
        """There is nothing to wait for."""

    def check(self) -> None:
        """There is nobody who could die."""

    def shutdown(self) -> None:
        """There is nothing to end."""


def read_as_a_frontend(endpoint: str, num_seqs: int, max_tokens: int, logprobs: int | None) -> None:
    """A client that adds all requests and reads all frames, granting credit as it goes."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(msgpack.packb({"type": "hello", "version": PROTOCOL_VERSION, "credit": 64}))
    socket.recv()
    sampling = {"max_tokens": max_tokens, "ignore_eos": True, "logprobs": logprobs}
    prompt = np.arange(PROMPT_TOKENS, dtype=np.int32)
    for handle in range(num_seqs):
        prompt[handle % BLOCK_SIZE] = handle
        # Of different lengths, so that requests come to the ends of their blocks in different steps.
        ids = prompt[handle % BLOCK_SIZE :].tobytes()
        add = {"type": "add", "request_id": str(handle), "handle": handle, "prompt_token_ids": ids}
        add["share_key"] = str(handle % 100)
        socket.send(msgpack.packb({**add, "sampling": sampling}))
    unfinished = num_seqs
    while unfinished:
        message = msgpack.unpackb(socket.recv())
        unfinished -= len(message.get("finished", ())) + len(message.get("errors", ()))
        socket.send(msgpack.packb({"type": "credit", "amount": 1}))


def measure(
    num_seqs: int,
    total_tokens: int,
    policy: PolicyName = "fcfs",
    num_groups: int = 1,
    sliding_window: int = 0,
    logprobs: int | None = None,
) -> dict[str, object]:
    """CPU ms per step in windows of generated tokens, once all requests decode; `logprobs`: alternatives for each."""
    # Requests come a few a turn: the first one must not end before the last one decodes.
    max_tokens = total_tokens // num_seqs + num_seqs // 8
    max_model_len = PROMPT_TOKENS + max_tokens
    config = engine_config(num_seqs, max_model_len, policy, num_groups, sliding_window)
    executor = StubExecutor(StepShape(**config.step_capacities()), config.scheduler.num_slots)
    ours, theirs = ControlLink.pair()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/core.sock"
        router = bind_router(zmq.Context(), endpoint, MAX_CLIENT_FRAME_BYTES)
        core = EngineCore(config, executor, router, theirs, Heartbeats.create(1), 0)
        client = multiprocessing.get_context("spawn").Process(
            target=read_as_a_frontend, args=(endpoint, num_seqs, max_tokens, logprobs)
        )
        client.start()
        stopper = threading.Thread(target=lambda: (client.join(), ours.send(Drain(timeout=0.0))))
        stopper.start()
        core.run()
        stopper.join()
    steady = np.array(executor.num_seqs[1:]) == num_seqs
    cpu_ms = np.diff(np.array(executor.cpu_ns)) / 1e6
    cpu_ms = cpu_ms[steady][1:]
    windows = np.array_split(cpu_ms, 10)
    return {
        "num_seqs": num_seqs,
        "logprobs": "-" if logprobs is None else logprobs,
        "num_steps": len(cpu_ms),
        "median_ms": statistics.median(cpu_ms.tolist()),
        "mean_ms": statistics.mean(cpu_ms.tolist()),
        "p99_ms": float(np.percentile(cpu_ms, 99)),
        "worst_ms": float(cpu_ms.max()),
        "median_ms_by_tenth": [round(statistics.median(window.tolist()), 4) for window in windows],
    }


def engine_config(
    num_seqs: int, max_model_len: int, policy: PolicyName = "fcfs", num_groups: int = 1, sliding_window: int = 0
) -> EngineConfig:
    """A core's configuration with a cache that holds everything; all layer groups but the first have the window."""
    num_blocks = num_groups * num_seqs * (-(-max_model_len // BLOCK_SIZE) + 1)
    model = ModelConfig(
        architecture="LlamaForCausalLM",
        path="stub",
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=num_groups,
        sliding_window=sliding_window,
        sliding_layers=tuple(range(1, num_groups)),
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=max_model_len,
        eos_token_ids=(2,),
    )
    return EngineConfig(
        model=model,
        cache=CacheConfig(block_size=BLOCK_SIZE, num_blocks=num_blocks, dtype="float32"),
        scheduler=SchedulerConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(8192, num_seqs),
            max_model_len=max_model_len,
            max_num_waiting=2 * num_seqs,
            max_num_penalty_rows=1,
            scheduling_policy=policy,
        ),
        device="cpu",
        dtype="float32",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--total-tokens", type=int, default=100_000)
    parser.add_argument("--scheduling-policy", choices=get_args(PolicyName), default="fcfs")
    parser.add_argument("--collect-garbage", action="store_true", help="leave Python's collector on, as no core does")
    parser.add_argument("--layer-groups", type=int, default=1, help="all but the first have the window")
    parser.add_argument("--sliding-window", type=int, default=33)
    parser.add_argument("--logprobs", type=int, nargs="+", default=[], help="with so many alternatives as well")
    arguments = parser.parse_args()
    if not arguments.collect_garbage:
        garbage.hold()
    results = [
        measure(
            num_seqs,
            max(arguments.total_tokens, 40 * num_seqs),
            arguments.scheduling_policy,
            arguments.layer_groups,
            arguments.sliding_window if arguments.layer_groups > 1 else 0,
            logprobs,
        )
        for num_seqs in arguments.num_seqs
        for logprobs in (None, *arguments.logprobs)
    ]
    print(json.dumps(results, indent=1))
    print("| running requests | logprobs | steps | CPU ms per step, median | mean | p99 | worst | first, last tenth |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        tenths = result["median_ms_by_tenth"]
        assert isinstance(tenths, list)
        print(
            f"| {result['num_seqs']} | {result['logprobs']} | {result['num_steps']} | {result['median_ms']:.3f} "
            f"| {result['mean_ms']:.3f} | {result['p99_ms']:.3f} | {result['worst_ms']:.3f} "
            f"| {tenths[0]:.3f}, {tenths[-1]:.3f} |"
        )


if __name__ == "__main__":
    main()
