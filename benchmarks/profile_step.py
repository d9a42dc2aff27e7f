"""Where a step's time goes on a GPU: kernels by name, the step as a whole, and what launching it costs the CPU.

    python -m benchmarks.profile_step --shape qwen06b --steps decode:1:256 decode:256:600:0.6 prefill:2:4096

Runs the worker's own runner in this process, without sockets or an engine core, on plans made here:
`decode:N:C[:t[:p]]`: N sequences of C tokens generate one more in each step, at temperature t with top-p p;
`prefill:N:C`: N prompts of C tokens are computed anew in each step;
`mixed:N:C:P:L`: N sequences decode at C tokens beside P new prompts of L tokens.
Steps are launched two ahead, as the engine core does. `--no-kernels` prints only the steps' times.
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
from gpu_workers.running.runner import Runner
from gpu_workers.threads import share_interpreter
from kernels import programmatic

_NUM_SLOTS = 4
_NUM_WARM_UP, _NUM_TIMED, _NUM_PROFILED = 10, 60, 8


class Steps(NamedTuple):
    """A kind of step: `num_decoding` sequences of `context` tokens generate one more each, and `num_prompts` prompts of
    `prompt_len` tokens are computed anew."""

    name: str
    num_decoding: int
    context: int
    num_prompts: int = 0
    prompt_len: int = 0
    temperature: float = 0.0
    top_p: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Steps":
        kind, *numbers = text.split(":")
        sizes = [int(number) for number in numbers[: 4 if kind == "mixed" else 2]]
        if kind == "decode":
            return cls(text, *sizes, 0, 0, *map(float, numbers[2:4]))
        return cls(text, *{"prefill": (0, 0, *sizes), "mixed": tuple(sizes)}[kind])

    @property
    def num_seqs(self) -> int:
        return self.num_decoding + self.num_prompts

    @property
    def num_tokens(self) -> int:
        return self.num_decoding + self.num_prompts * self.prompt_len


class Profiler:
    """A runner on rings of its own."""

    def __init__(self, model: str, max_num_seqs: int) -> None:
        args = ServeArgs(model=model, device="cuda", load_format="dummy", max_model_len=8192, max_num_seqs=max_num_seqs)
        config = resolve(args).engine
        share_interpreter()
        self.shape = StepShape(**config.step_capacities())
        self.runner = Runner(config, config.places()[0])
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
        longest = max(steps.context + 256, steps.prompt_len)
        blocks_per_row = min(-(-longest // self.shape.block_size), self.shape.max_blocks_per_row)
        tables = self.runner._rows.rows.block_tables
        blocks = torch.randperm(len(tables) * steps.num_seqs * blocks_per_row)
        tables[:, : steps.num_seqs, :blocks_per_row] = blocks.view(-1, steps.num_seqs, blocks_per_row).to(tables)

    def start_rows(self, steps: Steps, plan: StepPlan, rows: np.ndarray) -> None:
        """Records of `rows` int [R]; those that decode come first and know all but their last token."""
        inits = plan.row_inits[: len(rows)]
        inits[:] = np.zeros((), inits.dtype)
        inits["row"] = rows
        inits["num_computed_tokens"] = np.where(rows < steps.num_decoding, steps.context - 1, 0)
        inits["num_logprobs"] = inits["penalty_slot"] = -1
        inits["temperature"], inits["top_p"] = steps.temperature, steps.top_p
        plan.header[NUM_ROW_INITS] = len(rows)

    def launch(self, steps: Steps, first: bool) -> float:
        """Queues one step; returns what that took on the CPU, in seconds."""
        self._sequence += 1
        plan = self._plans[self._plan_ring.slot_of(self._sequence)]
        num_seqs, num_decoding = steps.num_seqs, steps.num_decoding
        plan.header[:] = 0
        rows = np.arange(num_seqs)
        self.start_rows(steps, plan, rows if first else rows[num_decoding:])
        plan.rows[:num_seqs] = rows
        plan.num_query_tokens[:num_seqs] = np.where(rows < num_decoding, 1, steps.prompt_len)
        # Rows that decode take the token that the step before sampled.
        plan.num_given[:num_seqs] = np.where(rows < num_decoding, int(first), steps.prompt_len)
        plan.samples[:num_seqs] = 1
        num_given = int(plan.num_given[:num_seqs].sum())
        plan.header[[STEP_ID, NUM_SEQS, NUM_TOKENS]] = self._sequence, num_seqs, steps.num_tokens
        plan.header[NUM_GIVEN] = num_given
        plan.token_ids[:num_given] = self._rng.integers(10, 1000, num_given)
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


class StepTimes(NamedTuple):
    """In microseconds."""

    period: float
    """From one step's start to the next one's."""
    busy: float
    """From a step's start on the device to its end."""
    launch: float
    """What queueing a step costs the CPU."""


def time_steps(profiler: Profiler, steps: Steps, count: int = _NUM_TIMED) -> StepTimes:
    """Of `count` steps behind some that are not counted."""
    profiler.scatter_blocks(steps)
    profiler.run(steps, _NUM_WARM_UP, first=True)
    launches, spans = profiler.run(steps, count, first=False)
    period = (spans[-1][1] - spans[0][1]) / (len(spans) - 1) / 1e3
    busy = float(np.median([end - start for start, end in spans])) / 1e3
    return StepTimes(period, busy, float(np.median(launches)) * 1e6)


def report(profiler: Profiler, steps: Steps, with_kernels: bool) -> None:
    """Prints one kind of step."""
    period, busy, launch = time_steps(profiler, steps)
    print(f"\n## {steps.name}: {period:.0f} us a step, {busy:.0f} from its start to its end, launch {launch:.0f} us")
    if not with_kernels:
        return
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
    parser.add_argument("--kernels", action=argparse.BooleanOptionalAction, default=True, help="kernels by name")
    arguments = parser.parse_args()
    programmatic.settings.is_allowed = arguments.programmatic_launch
    programmatic.settings.holds_first_tile = arguments.hold_first_tile
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        profiler = Profiler(str(write_model_folder(arguments.shape, Path(folder))), arguments.max_num_seqs)
        print(f"{arguments.shape}: ready after {time.perf_counter() - started:.1f} s")
        for text in arguments.steps:
            report(profiler, Steps.parse(text), arguments.kernels)
        profiler.runner.close()


if __name__ == "__main__":
    main()
