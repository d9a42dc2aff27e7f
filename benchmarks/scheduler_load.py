"""The real scheduler and cache manager under a load, with a stub in place of the workers: every row samples one token.

For figures and tests of what the scheduler decides. No model, no sockets, no processes.
"""

from collections import deque
from typing import Any

import numpy as np

from engine_core.config.engine_config import SchedulerConfig
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import StepPlan, StepResult, StepShape, plan_layout, result_layout
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.step_records import ScheduledStep, StepOutputs

TOKEN = 7
STEP_SECONDS = 0.02


class SchedulerLoad:
    """Steps a scheduler as the engine core's loop does: as many steps in flight as configured, the oldest collected."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        caching: bool = True,
        windows: tuple[int, ...] = (0,),
        **scheduler: Any,
    ) -> None:
        """`windows`: the sliding window of each layer group, 0 for none."""
        defaults: dict[str, Any] = {
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_model_len": 4096,
            "max_num_waiting": 2**20,
            "max_num_penalty_rows": 1,
        }
        self.config = SchedulerConfig(**{**defaults, **scheduler})
        self.scheduler = Scheduler(self.config, KVCacheManager(num_blocks, block_size, caching, windows=windows), ())
        shape = StepShape(
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            max_model_len=self.config.max_model_len,
            block_size=block_size,
            num_groups=len(windows),
        )
        plans, results = plan_layout(shape), result_layout(shape)
        self.plan = StepPlan.over(plans, bytearray(plans.num_bytes))
        self._result = StepResult.over(results, bytearray(results.num_bytes))
        self._result.sampled[:], self._result.num_sampled[:] = TOKEN, 1
        self._inflight: deque[ScheduledStep] = deque()
        self._num_added = 0
        self.now = 0.0
        self.num_computed_tokens = 0

    def add(self, prompt: np.ndarray, max_tokens: int, **fields: Any) -> Request:
        """A request that ends after `max_tokens`."""
        self._num_added += 1
        request = Request(
            request_id=str(self._num_added),
            client=b"",
            handle=self._num_added,
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            max_total_tokens=self.config.max_model_len,
            arrival_time=self.now,
            arrival_number=self._num_added,
            **fields,
        )
        self.scheduler.add(request)
        return request

    def schedule(self) -> ScheduledStep | None:
        """Plans and dispatches one more step."""
        step = self.scheduler.schedule(self.plan, self.now)
        if step is not None:
            self._inflight.append(step)
            self.num_computed_tokens += step.num_tokens
        return step

    def collect(self) -> StepOutputs:
        """The result of the oldest step in flight."""
        self.now += STEP_SECONDS
        step = self._inflight.popleft()
        self._result.header[0] = step.step_id
        return self.scheduler.update(step, self._result, self.now)

    @property
    def num_inflight(self) -> int:
        return len(self._inflight)

    def step(self) -> StepOutputs:
        """Fills the pipeline and collects one step."""
        while self.num_inflight < self.config.steps_in_flight and self.schedule() is not None:
            pass
        assert self._inflight, "nothing runs although requests wait"
        return self.collect()

    @property
    def num_used_slots(self) -> int:
        """KV slots of running requests that hold a token; each request counts the blocks that it shares as its own."""
        table = self.scheduler.table
        return int(table.num_computed[table.running].sum())

    @property
    def num_reserved_slots(self) -> int:
        """KV slots in the block tables of running requests."""
        table, kv = self.scheduler.table, self.scheduler.kv
        return int(table.num_blocks[table.running].sum()) * kv.block_size
