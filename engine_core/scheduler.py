"""Continuous batching as pure policy: which rows compute how many tokens in the next step, and what a result means.

There are no prefill and decode phases. A step has one token budget; running requests come first (those that need a
single token before those in the middle of their prompt, so that a long prompt delays nobody's next token), then waiting
ones. Who comes first among equals is a `SchedulingPolicy`'s. Time is an argument; there are no sockets and no torch
here. Several steps may be in flight: see DESIGN's rules on rows, generations and blocks, which `Retirement` and
`update` keep. `BlockTables` grows the tables of what runs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from engine_core.block_tables import BlockTables
from engine_core.common_beginning import CommonBeginning
from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import BlockDemand
from engine_core.growth_room import GrowthRoom
from engine_core.ipc.messages import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP
from engine_core.ipc.step import StepPlan, StepResult
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.plan_writer import PlanWriter
from engine_core.policies.registry import make_policy
from engine_core.prompt_chunks import divide, part_of_newcomer
from engine_core.prompt_hashing import PromptHashing
from engine_core.request import Request, RequestStatus
from engine_core.retirement import Retirement
from engine_core.row_table import RowTable
from engine_core.step_records import Finished, ScheduledStep, ScoredTokens, StepOutputs
from engine_core.token_spans import collect

_MAX_STARTS = 64
"""Requests that start in one step while others run, who wait some 75 us for the planning of each."""


class _Refusal(NamedTuple):
    """A waiting request that found too few blocks: nothing has changed for it while all of this is as it was."""

    request: Request
    num_needed: int
    """Blocks that would have to be available."""
    num_running: int
    next_block: bytes | None
    """What more of its beginning could be found by, once another request computes it."""


class Scheduler:
    """Owns the waiting queue, the rows and the block tables."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache_manager: KVCacheManager,
        eos_token_ids: tuple[int, ...],
        num_speculative_tokens: int = 0,
    ) -> None:
        """`num_speculative_tokens`: how many tokens the workers draft in a step for a row, at most."""
        assert config.max_num_batched_tokens >= config.max_num_seqs
        self.config = config
        self.kv = kv_cache_manager
        self.table = RowTable(
            config.max_num_seqs, config.max_model_len, config.max_num_penalty_rows, num_speculative_tokens
        )
        self.policy = make_policy(config)
        self.num_running = 0
        self.num_preemptions = 0
        self.may_run = False
        """Whether anything happened since there last was nothing that could run."""
        self._demand = BlockDemand.of(self.kv.windows, self.kv.block_size, config.max_num_batched_tokens)
        self._eos = eos_token_ids
        self._retirement = Retirement(self.table, kv_cache_manager)
        self._tables = BlockTables(self.table, kv_cache_manager, self._retirement, self._in_order, self._preempt)
        self._hashing = PromptHashing(kv_cache_manager)
        self._beginning = CommonBeginning(self.table, kv_cache_manager)
        self._refused: _Refusal | None = None
        """Of the request that last found too few blocks."""
        self.next_step_id = 1

    @property
    def running(self) -> Sequence[Request]:
        return [request for request in self.table.requests if request is not None and self.table.running[request.row]]

    @property
    def waiting(self) -> Iterator[Request]:
        """In no particular order."""
        return self.policy.waiting()

    @property
    def num_waiting(self) -> int:
        return self.policy.num_waiting

    @property
    def has_unfinished(self) -> bool:
        return self.num_running > 0 or self.num_waiting > 0

    # Events from clients

    def add(self, request: Request) -> None:
        """A new request, already checked by the caller: it must be able to fit into the cache by itself."""
        assert self._demand.peak(request.limit) <= self.kv.pool.num_blocks
        assert len(request.tokens) < request.limit or request.wants_scores, request
        self.policy.push(request)
        self._hashing.add(request)
        self.may_run = True

    def abort(self, request: Request, reason: str = FINISH_ABORT) -> Finished:
        """Ends a request that has not ended yet."""
        return self._finish(request, reason, None)

    def hash_ahead(self) -> bool:
        """Hashes a bounded part of the waiting prompts, for the time that the workers take; whether more is left."""
        return self._hashing.ahead()

    # The step

    def schedule(self, plan: StepPlan, now: float, enough_tokens: int = 2**31) -> ScheduledStep | None:
        """Plans one step into `plan`; None when there is nothing that could run before a result comes. No more prompts
        are started once those that were have `enough_tokens` to compute."""
        self.kv.now = now
        step_id, writer, num_preemptions = self.next_step_id, PlanWriter(plan), self.num_preemptions
        rows, counts = self._schedule_running(writer)
        if self.num_preemptions == num_preemptions:
            rows, counts = self._admit(writer, rows, counts, now, enough_tokens)
        if len(rows) == 0:
            self.may_run = False
            return None
        table = self.table
        num_expected = writer.finish(step_id, table, rows, counts)
        longer = counts > 1
        num_decoding = int(longer.argmax()) if longer.any() else len(rows)
        writer.share(self._beginning.num_keys(rows[:num_decoding]), num_decoding)
        if self.kv.host is not None:
            writer.add_copies(*self.kv.host.dispatch(step_id))
        scored = writer.score_prompts(table, rows, counts) if table.wants_scores[rows].any() else []
        table.num_computed[rows] += counts
        table.num_planned[rows] += num_expected
        table.last_step[rows] = step_id
        self.next_step_id += 1
        return ScheduledStep(
            step_id,
            rows,
            table.generation[rows],
            num_expected,
            counts,
            writer.num_tokens,
            writer.num_prompt_tokens,
            scored,
            rows[plan.mask_rows[: plan.num_masks]],
        )

    def update(self, step: ScheduledStep, result: StepResult, now: float) -> StepOutputs:
        """Takes in a result, in the order of the steps. What it names only for ended requests is dropped."""
        assert step.step_id == result.step_id == self._retirement.last_collected + 1, (step.step_id, result.step_id)
        self.kv.now = now
        self.may_run = True
        table = self.table
        indices, rows, counts, tokens, known_before, stops, skipped_rows = collect(table, step, result, self._eos)
        is_first = known_before == table.num_at_arrival[rows]
        intervals = now - table.last_token_time[rows]
        table.last_token_time[rows] = now
        for row in rows[is_first]:
            table.request(row).first_token_time = now
        self.policy.count_sampled(rows, counts)
        self._tables.register_sampled(rows, counts)
        scored = _count_scored(step)
        if self.kv.has_windows and self._tables.release_behind(step):
            self._refused = None
        finished = self._find_finished(rows, counts, tokens, stops)
        for part in scored:
            if not part.request.wants_scores and part.request.sampling.max_tokens == 0:
                finished.append(self._finish(part.request, FINISH_LENGTH, None))
        if self.kv.host is not None:
            self.kv.host.collect(step.step_id, result.num_host_slots)
        self._retirement.collected(step.step_id)
        return StepOutputs(indices, rows, counts, tokens, intervals, is_first, skipped_rows, scored, finished)

    # Running requests

    def _schedule_running(self, writer: PlanWriter) -> tuple[np.ndarray, np.ndarray]:
        """Rows and token counts (int32) of running requests that fit the budget and have their blocks."""
        table = self.table
        rows = table.running.nonzero()[0].astype(np.int32)
        most = table.limit[rows] - 1  # nothing follows the token at the limit
        pending = np.minimum(table.num_planned[rows], most) - table.num_computed[rows]
        ready = (pending > 0) & ~table.awaits_mask[rows]
        single = rows[ready & (pending == 1)]
        prompts = self._in_order(rows[ready & (pending > 1)])
        rows, counts = single, np.ones(len(single), np.int32)
        if table.num_speculative_tokens and len(single):
            counts += self._num_drafts(single)
        if len(prompts):
            rest = np.minimum(table.num_known[prompts], table.limit[prompts] - 1) - table.num_computed[prompts]
            num_joining = min(self.config.max_num_partial_prefills - len(prompts), self._num_admissible())
            chunks = divide(self.config.max_num_batched_tokens - int(counts.sum()), rest, num_joining)
            rows = np.concatenate([single, prompts[chunks > 0]])
            counts = np.concatenate([counts, chunks[chunks > 0]])
        rows, counts = self._tables.grow(writer, rows, counts)
        self._tables.register_known(rows, counts)
        return rows, counts

    def _num_drafts(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens (int32 [num_rows]) each of these rows may draft beside the one that it computes.

        None takes a token of the budget or a block that a row needs to get on. A grammar's mask is for one token.
        """
        table, kv = self.table, self.kv
        budget = (self.config.max_num_batched_tokens - self.config.max_num_seqs) // len(rows)
        left = np.maximum(table.limit[rows] - table.num_planned[rows] - 1, 0)
        drafts = np.where(table.matcher[rows] > 0, 0, np.minimum(left, min(budget, table.num_speculative_tokens)))
        num_entries = -(-(table.num_computed[rows] + 1 + drafts) // kv.block_size)
        num_missing = int(np.maximum(num_entries - table.num_blocks[rows], 0).sum())
        return drafts if kv.num_groups * num_missing <= kv.pool.num_available else np.zeros_like(drafts)

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """The rows in policy order."""
        if len(rows) < 2:
            return rows
        return rows[np.lexsort((self.table.arrival_number[rows], self.policy.ranks(rows)))]

    def _preempt(self, request: Request) -> None:
        """Sends a running request back to the queue; its blocks are given up and computed again later."""
        self._leave_running(request)
        request.transition(RequestStatus.WAITING)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.policy.push(request)
        self._retirement.add(request)

    # Waiting requests

    def _admit(
        self, writer: PlanWriter, rows: np.ndarray, counts: np.ndarray, now: float, enough_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Starts waiting requests in order while budget, rows and blocks last, and until they have `enough_tokens`."""
        budget = self.config.max_num_batched_tokens - int(counts.sum())
        if budget == 0 or self._num_admissible() == 0:
            return rows, counts
        self._hashing.begin_step()
        room = GrowthRoom(self.table, self.kv, self._demand)
        num_partial = self._num_partial(rows, counts)
        new_rows: list[int] = []
        new_counts: list[int] = []
        most = _MAX_STARTS if self.num_running else self.table.num_free
        least_budget = max(0, budget - enough_tokens)
        while budget > least_budget and self.table.num_free > 0 and len(new_rows) < most:
            request = self.policy.peek()
            if request is None or request.row >= 0:  # a preempted one whose last tokens are still in flight
                break
            num_places = min(self.config.max_num_partial_prefills - num_partial, self.num_waiting)
            runs_others = len(rows) > 0 or bool(new_rows)
            count = self._start(request, writer, room, budget, num_places, now, runs_others)
            if count == 0:
                break
            num_partial += int(self.table.num_computed[request.row]) + count < len(request.tokens)
            new_rows.append(request.row)
            new_counts.append(count)
            budget -= count
        if not new_rows:
            return rows, counts
        return (
            np.concatenate([rows, np.array(new_rows, np.int32)]),
            np.concatenate([counts, np.array(new_counts, counts.dtype)]),
        )

    def _num_partial(self, rows: np.ndarray, counts: np.ndarray) -> int:
        """How many prompts are in the middle of being computed once these rows have run."""
        rest = self.table.num_known - self.table.num_computed
        rest[rows] -= counts
        return int((rest[self.table.running] > 1).sum())

    def _num_admissible(self) -> int:
        """How many waiting requests may be looked at: none while the first is known to find too few blocks."""
        if self._refused is not None and self.num_running > 0:
            refused, pool = self._refused, self.kv.pool
            is_same = self.num_running == refused.num_running and self.policy.peek() is refused.request
            is_longer = refused.next_block is not None and pool.find(refused.next_block) is not None
            if is_same and not is_longer and pool.num_available < refused.num_needed:
                return 0
        return min(self.table.num_free, self.num_waiting)

    def _start(
        self,
        request: Request,
        writer: PlanWriter,
        room: GrowthRoom,
        budget: int,
        num_places: int,
        now: float,
        runs_others: bool,
    ) -> int:
        """Gives the request its row and first blocks; returns how many tokens it computes, 0 when it must wait: for
        room, or for the rest of its prefix, of which a step that also `runs_others` loads no more than a part."""
        kv, known = self.kv, len(request.tokens)
        num_computable = min(known, request.limit - 1)
        if not self.table.has_room_for(request) or not self._hashing.complete(request, self.num_running > 0):
            return 0
        hit = kv.find_prefix(request, request.tokens)
        num_hit = hit.num_blocks * kv.block_size
        count = part_of_newcomer(budget, num_computable - num_hit, num_places)
        total_blocks = kv.num_blocks_for(num_hit + count)
        num_needed = room.needed_by(request, hit)
        num_available = kv.num_available_beside(hit)
        if num_available < num_needed:
            num_missing = num_needed - num_available
            self._refused = _Refusal(
                request, kv.pool.num_available + num_missing, self.num_running, kv.next_block(request, hit)
            )
            return 0
        if count == 0 or not writer.has_room_for(request, kv.num_groups * total_blocks, self._eos):
            return 0
        if hit.on_host:
            assert kv.host is not None
            hit = kv.bring_back(request, hit, kv.host.num_loads_left(runs_others))
            if hit.on_host:
                assert runs_others, "a plan's loads hold the prefix of any one request"
                return 0
        self.policy.pop()
        request.transition(RequestStatus.RUNNING)
        kv.start_table(request, hit, known)
        kv.append([request], [total_blocks - hit.num_blocks])
        row = self.table.take(request, num_hit)
        self.num_running += 1
        if request.scheduled_time is None:
            request.scheduled_time = now
            request.num_cached_tokens = num_hit
            self.policy.start(request, known - num_hit)
        else:
            self.policy.start(request, 0)
        room.admitted(request, num_hit)
        writer.start_row(request, num_hit, self._eos)
        for group in range(kv.num_groups):
            first, blocks = kv.held_entries(request, group)
            writer.add_blocks(row, first, blocks, group)
        self._tables.register_known(np.array([row]), np.array([count]))
        return count

    # Ends

    def _find_finished(
        self, rows: np.ndarray, counts: np.ndarray, tokens: np.ndarray, stops: np.ndarray
    ) -> list[Finished]:
        """Ends the requests whose last token is a stop or at their limit."""
        finished = []
        for index in (stops | (self.table.num_known[rows] >= self.table.limit[rows])).nonzero()[0]:
            request = self.table.request(rows[index])
            if stops[index]:
                finished.append(self._finish(request, FINISH_STOP, int(tokens[counts[: index + 1].sum() - 1])))
            else:
                finished.append(self._finish(request, FINISH_LENGTH, None))
        return finished

    def _finish(self, request: Request, reason: str, stop_token_id: int | None) -> Finished:
        known = len(request.tokens) if request.row < 0 else int(self.table.num_known[request.row])
        was_waiting = request.status is RequestStatus.WAITING
        if not was_waiting:
            self._leave_running(request)
        request.transition(RequestStatus.FINISHED)
        if request.row >= 0:
            self.table.drop_results(request.row)
        if not was_waiting:
            self._retirement.add(request)
        self.policy.end(request, was_waiting)
        self.may_run = True
        return Finished(request, reason, stop_token_id, known - request.num_prompt_tokens)

    def _leave_running(self, request: Request) -> None:
        self.table.running[request.row] = False
        self.num_running -= 1


def _count_scored(step: ScheduledStep) -> list[ScoredTokens]:
    """What a step found of prompts whose requests have not ended."""
    wanted = [part for part in step.scored if part.request.status is not RequestStatus.FINISHED]
    for part in wanted:
        part.request.num_scored = part.first + part.count
    return wanted
