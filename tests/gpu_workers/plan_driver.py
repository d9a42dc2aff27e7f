"""A stand-in for the engine core: makes plans by hand for a few requests and feeds back only what a plan carries.

Token budget, chunks and blocks are handled in the simplest way that still reaches every case of the contract.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.row_fields import DEFAULT_ROW
from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS
from engine_core.ipc.step import (
    NUM_LOADS,
    NUM_MASKS,
    NUM_SCORED,
    NUM_SCORED_TOPS,
    NUM_STORES,
    LateMasks,
    StepPlan,
    StepResult,
    StepShape,
    late_layout,
    plan_layout,
    result_layout,
)
from engine_core.token_sequences import sequence_words, thinking_begin
from tests.gpu_workers.ring_runner import RingRunner

GONE = -1
Pairs = list[tuple[int, int]]


@dataclass
class Request:
    """One request and what it has produced. `sampling` has fields of the row record, `bias` and `stops`;
    `prompt_logprobs`, how many alternatives to each token of the prompt are wanted; `allowed`; and `sequences`, the
    parameters of bad words and thinking."""

    prompt: list[int]
    max_tokens: int
    row: int
    sampling: dict[str, Any] = field(default_factory=dict)
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of the prompt's second token and those after it."""
    num_computed: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    """By index in the block tables: one for each layer group, `GONE` where it lies behind the group's window."""
    started: bool = False
    allowed: Callable[[list[int]], Sequence[int]] | None = None
    """What may follow an output, where something binds it."""
    is_late: Callable[[int], bool] = lambda attempt: False
    """Whether the mask is late when it is needed for the n-th time, from 0 on."""
    num_attempts: int = 0
    num_skipped: int = 0
    """Of the token that comes next."""
    sampled_here: bool = False
    """Whether its last token was sampled in its row, which then knows it."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)


class PlanBuilder:
    """Fills a plan's arrays."""

    def __init__(self, plan: StepPlan, step_id: int) -> None:
        self.plan = plan
        plan.header[:] = 0
        plan.header[0] = step_id
        self._bulk = self._num_inits = self._num_deltas = 0

    def _append(self, values: Any) -> tuple[int, int]:
        values = np.asarray(values, np.int32)
        offset = self._bulk
        self.plan.bulk[offset : offset + len(values)] = values
        self._bulk += len(values)
        return offset, len(values)

    def start_row(self, request: Request) -> None:
        record = np.full(1, DEFAULT_ROW)
        values = {"temperature": 0.0, **request.sampling}
        bias, stops = values.pop("bias", {}), values.pop("stops", [])
        values.pop("prompt_logprobs", None)
        allowed, sequences = values.pop("allowed", []), values.pop("sequences", None)
        for name, value in values.items():
            record[name] = value
        record["row"], record["num_computed_tokens"] = request.row, request.num_computed
        record["num_prompt_tokens"], record["num_output_tokens"] = len(request.prompt), len(request.output)
        if record["penalty_slot"] >= 0:
            record["history_offset"], record["history_length"] = self._append(request.prompt + request.output)
        record["bias_offset"], record["bias_length"] = self._append(list(bias))
        self._append(np.array(list(bias.values()), np.float32).view(np.int32))
        record["stop_offset"], record["stop_length"] = self._append(stops)
        record["allowed_offset"], record["allowed_length"] = self._append(allowed)
        if sequences is not None:
            tokens = np.array(request.prompt + request.output, np.int32)
            record["sequences_offset"], count = self._append(sequence_words(sequences, tokens, len(request.prompt)))
            record["num_sequences"] = count // MAX_SEQUENCE_TOKENS - 1
            budget = sequences.thinking_token_budget
            record["thinking_budget"] = -1 if budget is None else budget
            record["thinking_begin"] = thinking_begin(
                request.output, sequences.thinking_start_token_ids, sequences.thinking_end_token_ids
            )
        self.plan.row_inits[self._num_inits] = record[0]
        self._num_inits += 1

    def add_blocks(self, row: int, index: int, blocks: list[int]) -> None:
        for group, block in enumerate(blocks):
            if block != GONE:
                self.plan.block_deltas[self._num_deltas] = (group, row, index, block)
                self._num_deltas += 1

    def copy_blocks(self, stores: Pairs, loads: Pairs) -> None:
        """Pairs of block and slot of host memory."""
        for array, word, pairs in ((self.plan.stores, NUM_STORES, stores), (self.plan.loads, NUM_LOADS, loads)):
            array[: len(pairs)] = np.array(pairs).reshape(-1, 2)
            self.plan.header[word] = len(pairs)

    def score(self, parts: list[tuple[int, list[int], int]]) -> None:
        """`parts`: the place of the token before the first one, tokens of a prompt, and how many tops they want."""
        indices = [place + j for place, tokens, _ in parts for j in range(len(tokens))]
        self.plan.scored_indices[: len(indices)] = indices
        self.plan.scored_token_ids[: len(indices)] = [token for _, tokens, _ in parts for token in tokens]
        self.plan.header[NUM_SCORED] = len(indices)
        self.plan.header[NUM_SCORED_TOPS] = max((count for _, _, count in parts), default=0)

    def finish(self, scheduled: list[tuple[int, int, list[int], bool]]) -> None:
        """`scheduled`: row, number of query tokens, given tokens, whether it samples."""
        plan, given = self.plan, []
        for i, (row, num_query, tokens, samples) in enumerate(scheduled):
            plan.rows[i], plan.num_query_tokens[i] = row, num_query
            plan.num_given[i], plan.samples[i] = len(tokens), samples
            given += tokens
        plan.token_ids[: len(given)] = given
        counts = (len(scheduled), sum(n for _, n, _, _ in scheduled), len(given), self._num_inits)
        plan.header[1:7] = (*counts, self._num_deltas, self._bulk)


class Driver:
    """Runs requests to their end on one runner; blocks are handed out in random order, and return at the end or when a
    sliding window has passed them."""

    def __init__(self, config: EngineConfig, runner: RingRunner | None = None) -> None:
        self.config = config
        self.runner = runner or RingRunner(config)
        self.shape = StepShape(**config.step_capacities())
        self._windows = config.layer_groups().windows
        plans, results = plan_layout(self.shape), result_layout(self.shape)
        self._plan = StepPlan.over(plans, bytearray(plans.num_bytes))
        self.result = StepResult.over(results, bytearray(results.num_bytes))
        self._random = random.Random(0)
        self._free = list(range(config.cache.num_blocks))
        self.num_steps = 0
        self.copies: tuple[Pairs, Pairs] = ([], [])
        """Stores and loads of the next step."""

    def run(self, requests: list[Request]) -> None:
        """Decoding rows first, then as much of the prompts as the budget holds."""
        while live := [r for r in requests if len(r.output) < r.max_tokens]:
            self.step(sorted(live, key=lambda r: len(r.prompt) - r.num_computed > 0))
            for request in requests:
                if len(request.output) == request.max_tokens:
                    self.release(request)

    def release(self, request: Request) -> None:
        self._free += [block for blocks in request.blocks for block in blocks if block != GONE]
        request.blocks = []

    def _release_behind(self, request: Request) -> None:
        for group, window in enumerate(self._windows):
            behind = max(0, request.num_computed - window + 1) // self.shape.block_size if window else 0
            for blocks in request.blocks[:behind]:
                if blocks[group] != GONE:
                    self._free.append(blocks[group])
                    blocks[group] = GONE

    def step(self, live: list[Request]) -> None:
        self.num_steps += 1
        builder = PlanBuilder(self._plan, self.num_steps)
        budget, scheduled, chosen = self.shape.max_num_batched_tokens, [], []
        scored: list[tuple[int, list[int], int]] = []
        for request in live:
            # A row that was skipped knows its last token as well; it may be given once more.
            fed_back = request.num_computed == request.num_tokens - 1 and (
                request.sampled_here or request.num_skipped % 2 == 1
            )
            num_query = 1 if fed_back else min(budget, request.num_tokens - request.num_computed)
            if num_query == 0:
                continue
            budget -= num_query
            if not request.started:
                builder.start_row(request)
                request.started = True
                for index, blocks in enumerate(request.blocks):  # a cached prefix
                    builder.add_blocks(request.row, index, blocks)
            end = request.num_computed + num_query
            while len(request.blocks) * self.shape.block_size < end:
                blocks = [self._free.pop(self._random.randrange(len(self._free))) for _ in self._windows]
                builder.add_blocks(request.row, len(request.blocks), blocks)
                request.blocks.append(blocks)
            tokens = [] if fed_back else (request.prompt + request.output)[request.num_computed : end]
            scheduled.append((request.row, num_query, tokens, end == request.num_tokens))
            chosen.append(request)
            wanted, begin = request.sampling.get("prompt_logprobs", -1), request.num_computed
            if wanted >= 0:
                place = self.shape.max_num_batched_tokens - budget - num_query
                scored.append((place, request.prompt[begin + 1 : end + 1], wanted))
            request.num_computed = end
        builder.finish(scheduled)
        builder.score(scored)
        builder.copy_blocks(*self.copies)
        self.copies = ([], [])
        self._execute(chosen)
        assert self.result.step_id == self.num_steps
        assert self.result.num_seqs == len(chosen)
        self._collect_scores([r for r in chosen if "prompt_logprobs" in r.sampling], [len(t) for _, t, _ in scored])
        for i, request in enumerate(chosen):
            samples = request.num_computed == request.num_tokens
            assert self.result.num_sampled[i] == (samples and i not in self._skipped)
            if i in self._skipped:
                request.num_computed -= 1
                request.num_skipped += 1
            elif samples:
                request.num_skipped = 0
                self._collect(request, i)
            self._release_behind(request)

    def _collect_scores(self, requests: list[Request], counts: list[int]) -> None:
        scores = iter(self.result.scores)
        for request, count in zip(requests, counts, strict=True):
            num_tops = request.sampling["prompt_logprobs"]
            for _ in range(count):
                score = next(scores)
                tops = zip(score["top_token_ids"].tolist(), score["top_logprobs"].tolist(), strict=True)
                request.prompt_logprobs.append(
                    {
                        "logprob": float(score["logprob"]),
                        "rank": int(score["rank"]),
                        "tops": dict(list(tops)[:num_tops]),
                    }
                )

    def _execute(self, chosen: list[Request]) -> None:
        """Masks are made when they are asked for, in another order than that of the rows."""
        bound = [i for i, one in enumerate(chosen) if one.allowed is not None and self._plan.samples[i]][::-1]
        self._plan.mask_rows[: len(bound)] = bound
        self._plan.header[NUM_MASKS] = len(bound)

        self._skipped = np.array([i for i in bound if self._is_late(chosen[i])], np.int64)

        def masks() -> tuple[np.ndarray, np.ndarray]:
            made = LateMasks.over(late_layout(self.shape), bytearray(late_layout(self.shape).num_bytes))
            made.masks[:] = 0x5A5A5A5A  # what is late may be anything
            for mask, i in zip(made.masks, bound, strict=False):
                request = chosen[i]
                assert request.allowed is not None
                if i in self._skipped:
                    continue
                bits = np.zeros(32 * self.shape.num_mask_words, np.bool_)
                bits[list(request.allowed(request.output))] = True
                mask[:] = np.packbits(bits, bitorder="little").view(np.int32)
            return made.masks, self._skipped

        self.runner.execute(self._plan, self.result, masks)

    @staticmethod
    def _is_late(request: Request) -> bool:
        request.num_attempts += 1
        return request.is_late(request.num_attempts - 1)

    def _collect(self, request: Request, i: int) -> None:
        request.output.append(int(self.result.sampled[i, 0]))
        request.sampled_here = True
        count = request.sampling.get("num_logprobs", -1)
        if count >= 0:
            request.logprobs.append(
                {
                    "logprob": float(self.result.logprobs[i, 0]),
                    "rank": int(self.result.ranks[i, 0]),
                    "tops": dict(
                        zip(
                            self.result.top_token_ids[i, 0, :count].tolist(),
                            self.result.top_logprobs[i, 0, :count].tolist(),
                            strict=True,
                        )
                    ),
                }
            )
