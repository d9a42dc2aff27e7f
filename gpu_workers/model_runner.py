"""The CPU's model, rows and cache, and what a step does with them: prepare, forward, sample, publish.

A plan's arrays in, a result's arrays out; a step is finished when `step` returns.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import (
    ENDED_NS,
    NUM_HOST_SLOTS,
    RESULT_NUM_SEQS,
    RESULT_STEP_ID,
    STARTED_NS,
    StepPlan,
    StepResult,
    StepShape,
    plan_layout,
    result_layout,
)
from gpu_workers.forward_context import ForwardContext
from gpu_workers.host_blocks import HostBlocks
from gpu_workers.input_batch import InputBatch
from gpu_workers.late_masks import Forward, MaskArrivals
from gpu_workers.loader import ProgressCallback
from gpu_workers.operations import load_host_operations, torch_dtype
from gpu_workers.sampling.sampler import Sampler, SamplerOutput, TokenMasks
from gpu_workers.served_model import ServedModel

Masks = Callable[[Forward], tuple[np.ndarray, np.ndarray]]
"""Waits for a step's masks: int32 [num_masks or more, W], and which scheduled rows have to be skipped, int64 [n]."""

_WARM_UP_TOKENS = 32
"""Enough to start threads and libraries; a long prompt would only make a large model's start longer."""


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step that has left the plan's slot: nothing in here points into shared memory."""

    step_id: int
    num_seqs: int
    context: ForwardContext
    sampled: np.ndarray  # [num_sampled]: which scheduled rows sample
    scored_token_ids: torch.Tensor  # [num_scored]: of prompts; their places follow the samples' in `logits_indices`
    num_scored_tops: int
    rows: torch.Tensor  # [num_sampled]
    positions: torch.Tensor  # [num_sampled]: tokens before the sampled one
    masked: torch.Tensor  # [num_masks]: which of the sampled rows have a mask


class ModelRunner:
    def __init__(self, config: EngineConfig, tp_rank: int = 0) -> None:
        """Builds the model without weights. Raises `ConfigError` when this device or model is not supported."""
        self._config = config
        self._operations = load_host_operations()
        self._shape = StepShape(**config.step_capacities())
        self._model = ServedModel(config, self._operations, torch.device(config.device), tp_rank)
        self._windows = config.layer_groups().windows
        self._workspace = self._operations.make_workspace()
        self._host_blocks: HostBlocks | None = None

    def load(self, progress: ProgressCallback) -> None:
        """Fills the weights. Raises `ConfigError` when the checkpoint does not fit."""
        self._model.load(progress)

    @torch.inference_mode()
    def start(self, progress: ProgressCallback) -> None:
        """Allocates cache and rows, then runs each kind of step once so that the first request finds all warm; reports
        those steps."""
        dtype = torch_dtype(self._config.cache.dtype)
        layout, cache = self._config.kv_layout(), self._config.cache
        self._kv_cache = self._operations.make_kv_cache(layout.cache_shape(cache.num_blocks), dtype)
        if cache.num_host_blocks:
            arena = self._operations.make_kv_cache(layout.cache_shape(cache.num_host_blocks), dtype)
            self._host_blocks = HostBlocks(self._kv_cache, arena)
        self._new_batch(self._config.scheduler.max_num_penalty_rows)
        self._warm_up(progress)

    def _new_batch(self, num_penalty_rows: int) -> None:
        self._batch = InputBatch(self._shape, self._config.model.vocab_size, num_penalty_rows, self._operations)
        self._sampler = Sampler(self._batch, self._operations)

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.numel() * self._kv_cache.element_size()

    @property
    def device_free_bytes(self) -> int:
        return 0

    @property
    def failure_fd(self) -> None:
        return None

    def check(self) -> None:
        """Nothing is ever under way."""

    def open(
        self, plan_ring: Ring, result_ring: Ring, finished: Callable[[int], None], sleep: Callable[[int], None]
    ) -> None:
        """Takes the rings over; `finished(n)` is called at the end of `step(n)`, `sleep` waits for late parts."""
        plans, results = plan_layout(self._shape), result_layout(self._shape)
        self._plans = [StepPlan.over(plans, slot) for slot in plan_ring.slots]
        self._results = [StepResult.over(results, slot) for slot in result_ring.slots]
        self._arrivals = MaskArrivals(plan_ring, self._shape, sleep)
        self._plan_ring = plan_ring
        self._finished = finished

    def step(self, sequence: int) -> None:
        """Runs the plan with that sequence number and writes its result."""
        slot = self._plan_ring.slot_of(sequence)
        plan = self._plans[slot]

        def masks(forward: Forward) -> tuple[np.ndarray, np.ndarray]:
            skipped = self._arrivals.wait(sequence, plan, forward)
            return self._arrivals.parts[slot].masks, skipped

        self.execute(plan, self._results[slot], masks)
        self._finished(sequence)

    def close(self) -> None:
        """Nothing is ever under way."""

    def execute(self, plan: StepPlan, result: StepResult, masks: Masks | None = None) -> None:
        """One whole step; callers that overlap its parts use them singly. `masks` waits for the plan's late part."""
        started = time.monotonic_ns()
        step = self.prepare(plan)
        hidden = self.forward(step)
        self.score(step, hidden, result)
        token_masks = None
        if plan.num_masks:
            assert masks is not None
            ended = time.monotonic_ns()
            late, skipped = masks(lambda: (ended, ended - started))
            token_masks = torch.from_numpy(late[: plan.num_masks])
            if len(skipped):
                step, hidden, token_masks = self._skip(step, hidden, token_masks, skipped)
        output = self.sample(step, hidden, token_masks)
        self.publish(step, output, result, started)

    @torch.inference_mode()
    def prepare(self, plan: StepPlan) -> PreparedStep:
        """Applies the plan's deltas and builds the step's inputs. The plan is not needed any longer afterwards."""
        num_seqs = plan.num_seqs
        if self._host_blocks is not None:
            self._host_blocks.copy(plan)
        self._batch.apply(plan)
        rows = torch.from_numpy(plan.rows[:num_seqs].astype(np.int64))
        num_query_tokens = torch.from_numpy(plan.num_query_tokens[:num_seqs].astype(np.int64))
        inputs = self._batch.prepare(plan, rows, num_query_tokens)
        attention = self._plan_attention(
            inputs.block_tables, inputs.slot_mapping, inputs.query_start_loc, inputs.seq_lens
        )
        sampled = np.flatnonzero(plan.samples[:num_seqs])
        index = torch.from_numpy(sampled)
        scored_indices, scored_token_ids = (
            torch.from_numpy(array[: plan.num_scored].astype(np.int64))
            for array in (plan.scored_indices, plan.scored_token_ids)
        )
        context = ForwardContext(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            logits_indices=torch.cat([inputs.query_start_loc[1:][index] - 1, scored_indices]),
            kv_cache=self._kv_cache,
            attention=attention,
            workspace=self._workspace,
        )
        masked = torch.from_numpy(np.searchsorted(sampled, plan.mask_rows[: plan.num_masks]))
        return PreparedStep(
            step_id=plan.step_id,
            num_seqs=num_seqs,
            context=context,
            sampled=sampled,
            scored_token_ids=scored_token_ids,
            num_scored_tops=plan.num_scored_tops,
            rows=rows[index],
            positions=inputs.seq_lens[index],
            masked=masked,
        )

    def _plan_attention(
        self, tables: torch.Tensor, slots: torch.Tensor, query_start_loc: torch.Tensor, seq_lens: torch.Tensor
    ) -> list[Any]:
        """The plan of each layer group; groups are the first dimension of `tables` and `slots`."""
        return [
            self._operations.plan_attention(
                self._kv_cache, tables[group], slots[group], query_start_loc, seq_lens, window
            )
            for group, window in enumerate(self._windows)
        ]

    @torch.inference_mode()
    def forward(self, step: PreparedStep) -> torch.Tensor:
        """Hidden states [num_sampled + num_scored, hidden_size]."""
        return self._model.module.last_hidden(step.context)

    @torch.inference_mode()
    def _skip(
        self, step: PreparedStep, hidden: torch.Tensor, token_masks: torch.Tensor, skipped: np.ndarray
    ) -> tuple[PreparedStep, torch.Tensor, torch.Tensor]:
        """The step, its hidden states and masks without the scheduled rows `skipped`, which have masks and take their
        last token back."""
        samples = ~np.isin(step.sampled, skipped)
        self._batch.take_back(step.rows[torch.from_numpy(~samples)])
        is_there = samples[step.masked.numpy()]
        places = np.cumsum(samples) - 1  # of the rows that are left
        kept = torch.from_numpy(np.flatnonzero(samples))
        rest = replace(
            step,
            sampled=step.sampled[samples],
            rows=step.rows[kept],
            positions=step.positions[kept],
            masked=torch.from_numpy(places[step.masked.numpy()[is_there]]),
        )
        return rest, hidden[kept], token_masks[torch.from_numpy(is_there)]

    @torch.inference_mode()
    def score(self, step: PreparedStep, hidden: torch.Tensor, result: StepResult) -> None:
        """Writes how likely the tokens of prompts were that the plan asks for; their logits never exist all at once."""
        hidden, num_rows = hidden[len(step.sampled) :], self._config.scheduler.max_scored_rows
        num_top = min(step.num_scored_tops, self._config.model.vocab_size)
        for start in range(0, len(hidden), num_rows):
            part = slice(start, min(start + num_rows, len(hidden)))
            logits = self._operations.make_finite(self._model.module.logits(hidden[part]))
            logprobs, ranks, top_ids, top_logprobs = self._operations.token_logprobs(
                logits, step.scored_token_ids[part], num_top
            )
            scores = result.scores[part]
            scores["logprob"], scores["rank"] = logprobs.numpy(), ranks.numpy()
            scores["top_token_ids"][:, :num_top] = top_ids.numpy()
            scores["top_logprobs"][:, :num_top] = top_logprobs.numpy()

    @torch.inference_mode()
    def sample(
        self, step: PreparedStep, hidden: torch.Tensor, token_masks: torch.Tensor | None = None
    ) -> SamplerOutput | None:
        """Chooses tokens; None where no row samples in this step. `token_masks` int32 [num_masks, W]."""
        if len(step.sampled) == 0:
            return None
        logits = self._model.module.logits(hidden[: len(step.sampled)])
        masks = None if token_masks is None else TokenMasks(step.masked, token_masks)
        return self._sampler.sample(logits, step.rows, step.positions, masks)

    def publish(self, step: PreparedStep, output: SamplerOutput | None, result: StepResult, started_ns: int) -> None:
        """Writes the result's arrays."""
        result.num_sampled[: step.num_seqs] = 0
        if output is not None:
            result.num_sampled[step.sampled] = 1
            result.sampled[step.sampled, 0] = output.token_ids.numpy()
            if output.logprobs is not None:
                _publish_logprobs(step, output, result)
        result.header[RESULT_STEP_ID] = step.step_id
        result.header[RESULT_NUM_SEQS] = step.num_seqs
        result.header[STARTED_NS] = started_ns
        result.header[ENDED_NS] = time.monotonic_ns()
        result.header[NUM_HOST_SLOTS] = 0 if self._host_blocks is None else self._host_blocks.num_ready

    def _warm_up(self, progress: ProgressCallback) -> None:
        """A short prompt and a step of single tokens, on blocks that nobody owns yet."""
        steps = ((1, _WARM_UP_TOKENS), (self._config.scheduler.max_num_seqs, 1))
        progress(0, len(steps))
        for done, (num_seqs, query_len) in enumerate(steps, start=1):
            capacity = self._config.cache.num_blocks * self._shape.block_size
            self._warm_up_step(num_seqs, min(query_len, self._config.scheduler.max_model_len, capacity))
            progress(done, len(steps))

    def _warm_up_step(self, num_seqs: int, query_len: int) -> None:
        block_size = self._shape.block_size
        num_tokens = num_seqs * query_len
        positions = torch.arange(query_len).repeat(num_seqs)
        num_groups = len(self._windows)
        tables = torch.arange(-(-query_len // block_size)).repeat(num_groups, num_seqs, 1)
        starts = torch.arange(num_seqs + 1) * query_len
        attention = self._plan_attention(
            tables, positions.repeat(num_groups, 1), starts, torch.full((num_seqs,), query_len)
        )
        context = ForwardContext(
            torch.zeros(num_tokens, dtype=torch.long),
            positions,
            starts[1:] - 1,
            self._kv_cache,
            attention,
            self._workspace,
        )
        self._operations.greedy(self._model.module(context))


def _publish_logprobs(step: PreparedStep, output: SamplerOutput, result: StepResult) -> None:
    logprobs = output.logprobs
    assert logprobs is not None
    rows = step.sampled[logprobs.index.numpy()]
    num_top = logprobs.top_token_ids.shape[1]
    result.logprobs[rows, 0] = logprobs.sampled.numpy()
    result.ranks[rows, 0] = logprobs.ranks.numpy()
    result.top_token_ids[rows, 0, :num_top] = logprobs.top_token_ids.numpy()
    result.top_logprobs[rows, 0, :num_top] = logprobs.top_logprobs.numpy()
