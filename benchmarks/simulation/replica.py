"""One engine in virtual time: the real scheduler and cache manager, steps in flight, and a cost model for its GPU.

The turns of `engine_core.engine_core.EngineCore.run` without sockets and processes: take what has arrived and what has
ended, plan until as many steps are in flight as may be, go on at the next event. The core's CPU time passes in virtual
time too, so a step waits for its plan where planning takes longer than computing.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.simulation.cost_model import CostModel
from benchmarks.simulation.trace import TraceRequest
from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import (
    NUM_HOST_SLOTS,
    NUM_ROW_INITS,
    NUM_SHARING_SEQS,
    RESULT_STEP_ID,
    StepPlan,
    StepResult,
    StepShape,
    plan_layout,
    result_layout,
)
from engine_core.kv_cache_manager import make_kv_cache_manager
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.step_pacing import StepPacing
from engine_core.step_records import ScheduledStep, StepOutputs

_SAMPLED_TOKEN = -1
"""Stands for all output; no prompt holds it, so no prompt continues an output."""
_HASH_KEY = bytes(32)


@dataclass
class Record:
    """What a replica did. Times are virtual seconds."""

    step_ends: list[float] = field(default_factory=list)
    """When the core took in each step; as long: what the KV cache held then, and who ran and waited."""
    num_owned: list[int] = field(default_factory=list)
    num_running: list[int] = field(default_factory=list)
    num_waiting: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """Of each ended request; as long: until its first token and until its last one, and its tokens."""
    first_token: list[float] = field(default_factory=list)
    last_token: list[float] = field(default_factory=list)
    num_input_tokens: list[int] = field(default_factory=list)
    num_output_tokens: list[int] = field(default_factory=list)
    intervals: list[np.ndarray] = field(default_factory=list)
    """Between two tokens of a request, for each step."""
    num_refused: int = 0
    num_preemptions: int = 0
    num_query_tokens: int = 0
    num_hit_tokens: int = 0
    num_loaded_blocks: int = 0
    num_blocks: int = 0
    busy_seconds: float = 0.0
    """Of the GPU."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    step: ScheduledStep
    ends_at: float
    seconds: float


class Replica:
    """Requests are added in order of arrival; `advance` takes it to a moment."""

    def __init__(self, config: EngineConfig, costs: CostModel, on_ended: Callable[[int], object]) -> None:
        """`on_ended` is called with how many requests have just ended."""
        cache, self._block_bytes = config.cache, config.kv_layout().block_bytes
        self.scheduler = Scheduler(config.scheduler, make_kv_cache_manager(config, _HASH_KEY), ())
        self.record = Record(num_blocks=cache.num_blocks)
        self.num_unfinished = 0
        self.num_waiting_tokens = 0
        """Of prompts without a first token yet."""
        self._config, self._costs, self._on_ended = config, costs, on_ended
        self._max_tokens = config.longest_request()
        shape = StepShape(**config.step_capacities())
        plans, results = plan_layout(shape), result_layout(shape)
        self._plan = StepPlan.over(plans, bytearray(plans.num_bytes))
        self._result = StepResult.over(results, bytearray(results.num_bytes))
        self._result.sampled[:], self._result.num_sampled[:] = _SAMPLED_TOKEN, 1
        self._result.header[NUM_HOST_SLOTS] = cache.num_host_blocks
        self._arrivals: deque[TraceRequest] = deque()
        self._inflight: deque[_InFlight] = deque()
        self._num_added = 0
        self._unstarted: dict[int, int] = {}
        """Prompt tokens by handle, of admitted requests without a first token."""
        self._pacing = StepPacing(config.scheduler, may_hold=self.scheduler.kv.host is None)
        self._core_free = self._gpu_free = self._stores_end = self._loads_end = 0.0

    def add(self, request: TraceRequest) -> None:
        """It will arrive at its time, which may not lie before an `advance`."""
        self._arrivals.append(request)
        self.num_unfinished += 1
        self.num_waiting_tokens += request.num_input_tokens

    def advance(self, until: float = math.inf) -> None:
        """Takes all turns that begin before that moment."""
        while (now := self._next_turn()) < until:
            self._turn(now)

    def finish(self) -> Record:
        """Advances to the end of all requests."""
        self.advance()
        scheduler, record = self.scheduler, self.record
        assert not scheduler.has_unfinished, "requests wait and nothing runs"
        scheduler.kv.pool.check_integrity()
        record.num_preemptions = scheduler.num_preemptions
        record.num_query_tokens = scheduler.kv.num_query_tokens
        record.num_hit_tokens = scheduler.kv.num_hit_tokens
        if scheduler.kv.host is not None:
            record.num_loaded_blocks = scheduler.kv.host.num_loaded
        return record

    # A turn of the core

    def _next_turn(self) -> float:
        """When something will have happened that the core can take in; infinite: never."""
        arrival = self._arrivals[0].arrival if self._arrivals else math.inf
        end = self._inflight[0].ends_at if self._inflight else math.inf
        wait_ns = self._wait_ns() if self.scheduler.may_run else None
        plan = math.inf if wait_ns is None else self._core_free + wait_ns / 1e9
        return max(self._core_free, min(arrival, end, plan))

    def _wait_ns(self) -> int | None:
        return self._pacing.wait_ns(self.scheduler.num_waiting, round(self._core_free * 1e9))

    def _turn(self, now: float) -> None:
        while self._arrivals and self._arrivals[0].arrival <= now:
            self._admit(self._arrivals.popleft())
        self._core_free = now
        while self._inflight and self._inflight[0].ends_at <= self._core_free:
            ended = self._inflight.popleft()
            self._pacing.collected(round((ended.ends_at - ended.seconds) * 1e9), round(ended.ends_at * 1e9))
            self._collect(ended.step)
        while self.scheduler.may_run and self._wait_ns() == 0:
            self._dispatch()
        while self._inflight and self.scheduler.hash_ahead():
            pass

    def _admit(self, request: TraceRequest) -> None:
        scheduler = self.scheduler
        self._num_added += 1
        num_tokens = request.num_input_tokens
        is_too_long = num_tokens + request.num_output_tokens > self._max_tokens
        if is_too_long or scheduler.policy.is_full(request.share_key, self._config.scheduler.max_num_waiting):
            self.record.num_refused += 1
            self.num_waiting_tokens -= num_tokens
            self._ended(1)
            return
        self._unstarted[self._num_added] = num_tokens
        scheduler.add(
            Request(
                request_id=str(self._num_added),
                client=b"",
                handle=self._num_added,
                prompt_token_ids=request.prompt(),
                sampling=SamplingParams(max_tokens=request.num_output_tokens, ignore_eos=True),
                max_total_tokens=self._max_tokens,
                arrival_time=request.arrival,
                arrival_number=self._num_added,
                priority=request.priority,
                share_key=request.share_key,
            )
        )

    def _dispatch(self) -> None:
        """Plans one more step if there is one, and lets the GPU run it as soon as it can."""
        step = self.scheduler.schedule(
            self._plan, self._core_free, self._pacing.enough_tokens(self.scheduler.num_waiting)
        )
        if step is None:
            return
        costs, plan = self._costs, self._plan
        self._core_free += costs.core_seconds(len(step.rows)) / 2
        self._core_free += int(plan.header[NUM_ROW_INITS]) * costs.start_seconds
        dispatched = self._core_free + costs.launch_seconds
        self._pacing.dispatched(step.num_tokens, round(dispatched * 1e9))
        if plan.num_stores:
            seconds = costs.copy_seconds(plan.num_stores, self._block_bytes)
            self._stores_end = max(self._stores_end, dispatched) + seconds
        if plan.num_loads:
            seconds = costs.copy_seconds(plan.num_loads, self._block_bytes)
            self._loads_end = max(self._loads_end, dispatched) + seconds
        starts_at = max(self._gpu_free, dispatched, self._stores_end, self._loads_end)
        table = self.scheduler.table
        ends, counts = table.num_computed[step.rows], plan.num_query_tokens[: len(step.rows)]
        distinct = min(1.0, self.scheduler.kv.pool.num_owned / self._num_entries())
        num_sampled = int(step.num_expected.sum())
        shared = (plan.num_shared_keys, int(plan.header[NUM_SHARING_SEQS]))
        seconds = costs.step_seconds(ends, counts, num_sampled, distinct, *shared)
        self._gpu_free = starts_at + seconds
        self.record.busy_seconds += seconds
        self._inflight.append(_InFlight(step, self._gpu_free, seconds))

    def _num_entries(self) -> int:
        """Blocks in the tables of all that runs, those of several requests counted once for each."""
        table, kv = self.scheduler.table, self.scheduler.kv
        num_entries = kv.num_groups * int(table.num_blocks[table.running].sum())
        return num_entries - kv.num_blocks_behind(table.num_behind[table.running])

    def _collect(self, step: ScheduledStep) -> None:
        self._result.header[RESULT_STEP_ID] = step.step_id
        scheduler, now = self.scheduler, self._core_free
        outputs = scheduler.update(step, self._result, now)
        self._core_free += self._costs.core_seconds(len(step.rows)) / 2
        record = self.record
        record.step_ends.append(now)
        record.num_owned.append(scheduler.kv.pool.num_owned)
        record.num_running.append(scheduler.num_running)
        record.num_waiting.append(scheduler.num_waiting)
        record.intervals.append(outputs.intervals[~outputs.is_first])
        for handle in scheduler.table.handle[outputs.rows[outputs.is_first]].tolist():
            self.num_waiting_tokens -= self._unstarted.pop(handle)
        self._note_finished(outputs, now)

    def _note_finished(self, outputs: StepOutputs, now: float) -> None:
        record = self.record
        for finished in outputs.finished:
            request = finished.request
            assert request.first_token_time is not None
            record.arrivals.append(request.arrival_time)
            record.first_token.append(request.first_token_time - request.arrival_time)
            record.last_token.append(now - request.arrival_time)
            record.num_input_tokens.append(request.num_prompt_tokens)
            record.num_output_tokens.append(finished.num_output_tokens)
        if outputs.finished:
            self._ended(len(outputs.finished))

    def _ended(self, count: int) -> None:
        self.num_unfinished -= count
        self._on_ended(count)
