"""Where a step's time goes on a GPU: kernels by name, the step as a whole, and what launching it costs the CPU.

    python -m benchmarks.profile_step --shape qwen06b --steps decode:1:256 decode:256:600:0.6 prefill:2:4096

Runs the worker's own runner in this process, without sockets or an engine core, on plans made here: `decode:N:C[:t]`
are N sequences of C tokens that generate one more in each step (at temperature t), `prefill:N:C` computes N prompts of
C tokens anew in each step. Steps are launched two ahead, as the engine core does.
"""

import argparse
import queue
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.shapes import SHAPES, write_model_folder
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import (
    ENDED_NS,
    NUM_GIVEN,
    NUM_ROW_INITS,
    NUM_SEQS,
    NUM_TOKENS,
    STARTED_NS,
    STEP_ID,
    StepPlan,
    StepResult,
    StepShape,
    late_layout,
    plan_layout,
    result_layout,
)
from frontend.cli.flags import ServeArgs
from frontend.cli.resolve import resolve
from gpu_workers.cuda.runner import CudaRunner
from gpu_workers.threads import share_interpreter
from kernels import programmatic

_NUM_SLOTS = 4
_NUM_WARM_UP, _NUM_TIMED, _NUM_PROFILED = 10, 60, 8


class Steps(NamedTuple):
    """A kind of step: `num_seqs` sequences of `context` tokens, of which each step computes the last `query_len`."""

    name: str
    num_seqs: int
    context: int
    query_len: int
    temperature: float

    @classmethod
    def parse(cls, text: str) -> "Steps":
        kind, num_seqs, context, *rest = text.split(":")
        query_len = {"decode": 1, "prefill": int(context)}[kind]
        return cls(text, int(num_seqs), int(context), query_len, float(rest[0]) if rest else 0.0)


class Profiler:
    """A runner on rings of its own."""

    def __init__(self, model: str, max_num_seqs: int) -> None:
        args = ServeArgs(model=model, device="cuda", load_format="dummy", max_model_len=8192, max_num_seqs=max_num_seqs)
        config = resolve(args).engine
        share_interpreter()
        self.shape = StepShape(**config.step_capacities())
        self.runner = CudaRunner(config)
        self.runner.load(lambda done, total: None)
        self.runner.start(lambda done, total: None)
        plans, results = plan_layout(self.shape), result_layout(self.shape)
        late_bytes = late_layout(self.shape).num_bytes
        self._plan_ring = Ring.create("plans", plans.num_bytes, _NUM_SLOTS, 1, late_bytes)
        result_ring = Ring.create("results", results.num_bytes, _NUM_SLOTS)
        self._plans = [StepPlan.over(plans, slot) for slot in self._plan_ring.slots]
        self._results = [StepResult.over(results, slot) for slot in result_ring.slots]
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.runner.open(self._plan_ring, result_ring, self._finished.put, lambda: None)
        self._sequence = 0
        self._rng = np.random.default_rng(0)

    @torch.inference_mode()
    def scatter_blocks(self, steps: Steps) -> None:
        """Gives every sequence blocks from all over the cache, for this and all coming steps of its kind."""
        blocks_per_row = min(-(-(steps.context + 256) // self.shape.block_size), self.shape.max_blocks_per_row)
        tables = self.runner._rows.rows.block_tables
        blocks = torch.randperm(len(tables) * steps.num_seqs * blocks_per_row)
        tables[:, : steps.num_seqs, :blocks_per_row] = blocks.view(-1, steps.num_seqs, blocks_per_row).to(tables)

    def start_rows(self, steps: Steps, plan: StepPlan) -> None:
        """Records of all rows."""
        inits = plan.row_inits[: steps.num_seqs]
        inits[:] = np.zeros((), inits.dtype)
        inits["row"] = np.arange(steps.num_seqs)
        inits["num_computed_tokens"] = steps.context - steps.query_len
        inits["top_p"] = 1.0
        inits["num_logprobs"] = inits["penalty_slot"] = -1
        inits["temperature"] = steps.temperature
        plan.header[NUM_ROW_INITS] = steps.num_seqs

    def launch(self, steps: Steps, first: bool) -> float:
        """Queues one step; returns what that took on the CPU, in seconds."""
        self._sequence += 1
        plan = self._plans[self._plan_ring.slot_of(self._sequence)]
        num_tokens = steps.num_seqs * steps.query_len
        plan.header[:] = 0
        if first or steps.query_len > 1:
            self.start_rows(steps, plan)
        fed_back = steps.query_len == 1 and not first
        plan.header[[STEP_ID, NUM_SEQS, NUM_TOKENS]] = self._sequence, steps.num_seqs, num_tokens
        plan.header[NUM_GIVEN] = 0 if fed_back else num_tokens
        plan.rows[: steps.num_seqs] = np.arange(steps.num_seqs)
        plan.num_query_tokens[: steps.num_seqs] = steps.query_len
        plan.num_given[: steps.num_seqs] = 0 if fed_back else steps.query_len
        plan.samples[: steps.num_seqs] = 1
        if not fed_back:
            plan.token_ids[:num_tokens] = self._rng.integers(10, 1000, num_tokens)
        started = time.perf_counter()
        self.runner.step(self._sequence)
        return time.perf_counter() - started

    def wait(self) -> StepResult:
        """The oldest result that was not waited for."""
        sequence = self._finished.get()
        return self._results[self._plan_ring.slot_of(sequence)]

    def run(self, steps: Steps, count: int, first: bool) -> tuple[list[float], list[tuple[int, int]]]:
        """Launch times of `count` steps, and when each started and ended on the device, ns."""
        launches, spans = [], []
        for index in range(count):
            launches.append(self.launch(steps, first and index == 0))
            if index:
                spans.append(_span(self.wait()))
        spans.append(_span(self.wait()))
        return launches, spans


def _span(result: StepResult) -> tuple[int, int]:
    return int(result.header[STARTED_NS]), int(result.header[ENDED_NS])


def report(profiler: Profiler, steps: Steps) -> None:
    """Prints one kind of step."""
    profiler.scatter_blocks(steps)
    profiler.run(steps, _NUM_WARM_UP, first=True)
    launches, spans = profiler.run(steps, _NUM_TIMED, first=False)
    period = (spans[-1][1] - spans[0][1]) / (len(spans) - 1) / 1e3
    busy = float(np.median([end - start for start, end in spans])) / 1e3
    launch = float(np.median(launches)) * 1e6
    print(f"\n## {steps.name}: {period:.0f} us a step, {busy:.0f} from its start to its end, launch {launch:.0f} us")
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        profiler.run(steps, _NUM_PROFILED, first=False)
    times: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name].append(event.device_time)
    total = sum(sum(each) for each in times.values()) / _NUM_PROFILED
    print(f"| kernel | calls a step | us each | us a step | of {total:.0f} |\n|---|---|---|---|---|")
    for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:18]:
        per_step = sum(each) / _NUM_PROFILED
        print(
            f"| {name[:70]} | {len(each) / _NUM_PROFILED:.0f} | {np.median(each):.1f} | {per_step:.0f} "
            f"| {per_step / total:.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen06b")
    parser.add_argument("--steps", nargs="+", default=["decode:1:256", "decode:64:640"])
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument(
        "--programmatic-launch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let kernels start before the ones before them have ended",
    )
    parser.add_argument(
        "--hold-first-tile",
        action=argparse.BooleanOptionalAction,
        default=programmatic.settings.holds_first_tile,
        help="while a program of a product of one row waits, read its first tile of the weight into registers",
    )
    arguments = parser.parse_args()
    programmatic.settings.is_allowed = arguments.programmatic_launch
    programmatic.settings.holds_first_tile = arguments.hold_first_tile
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        profiler = Profiler(str(write_model_folder(arguments.shape, Path(folder))), arguments.max_num_seqs)
        print(f"{arguments.shape}: ready after {time.perf_counter() - started:.1f} s")
        for text in arguments.steps:
            report(profiler, Steps.parse(text))
        profiler.runner.close()


if __name__ == "__main__":
    main()
