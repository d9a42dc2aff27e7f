"""Continuous batching as pure policy: which rows compute how many tokens in the next step, and what a result means.

There are no prefill and decode phases. A step has one token budget; running requests come first (those that need a
single token before those in the middle of their prompt, so that a long prompt delays nobody's next token), then waiting
ones. Time is an argument; there are no sockets and no torch here. Several steps may be in flight: see DESIGN's rules on
rows, generations and blocks, which `_retire` and `update` keep.
"""

import bisect
from collections import deque

import numpy as np

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import BlockDemand
from engine_core.ipc.messages import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP
from engine_core.ipc.step import StepPlan, StepResult
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.plan_writer import PlanWriter
from engine_core.request import Request, RequestStatus
from engine_core.row_table import RowTable
from engine_core.step_records import Finished, ScheduledStep, StepOutputs
from engine_core.waiting_queue import WaitingQueue


class Scheduler:
    """Owns the waiting queue, the rows and the block tables."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache_manager: KVCacheManager,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        assert config.max_num_batched_tokens >= config.max_num_seqs
        self.config = config
        self.kv = kv_cache_manager
        self.table = RowTable(config.max_num_seqs, config.max_model_len)
        self.waiting = WaitingQueue()
        self.num_preemptions = 0
        self._demand = BlockDemand.of(self.kv.windows, self.kv.block_size, config.max_num_batched_tokens)
        self._eos = eos_token_ids
        self._running: list[Request] = []  # in policy order
        self._running_rows = np.empty(0, np.int32)  # the same, rebuilt when the set changes
        self._running_changed = False
        self._retiring: deque[Request] = deque()
        self._num_retiring_blocks = 0
        self._free_penalty_slots = list(range(config.max_num_penalty_rows - 1, -1, -1))
        self._refused: tuple[Request, int] | None = None
        """The request that last found too few blocks, and how many were available then."""
        self._next_step_id = 1
        self._last_collected = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._running or len(self.waiting))

    # Events from clients

    def add(self, request: Request) -> None:
        """A new request, already checked by the caller: it must be able to fit into the cache by itself."""
        assert self._demand.peak(request.limit) <= self.kv.pool.num_blocks
        assert len(request.tokens) < request.limit, request
        self.waiting.push(request)

    def abort(self, request: Request) -> Finished:
        """Ends a request that has not ended yet."""
        return self._finish(request, FINISH_ABORT, None)

    # The step

    def schedule(self, plan: StepPlan, now: float) -> ScheduledStep | None:
        """Plans one step into `plan`; None when there is nothing that could run before a result comes."""
        step_id, writer, num_preemptions = self._next_step_id, PlanWriter(plan), self.num_preemptions
        rows, counts = self._schedule_running(writer)
        if self.num_preemptions == num_preemptions:
            rows, counts = self._admit(writer, rows, counts, now)
        if len(rows) == 0:
            return None
        given, samples = self._fill_tokens(plan, rows, counts)
        writer.finish(step_id, rows, counts, given, samples)
        table = self.table
        table.num_computed[rows] += counts
        table.num_inflight[rows] += samples
        table.last_step[rows] = step_id
        self._next_step_id += 1
        return ScheduledStep(
            step_id,
            rows,
            table.generation[rows],
            samples.astype(np.bool_),
            table.num_computed[rows],
            int(counts.sum()),
        )

    def update(self, step: ScheduledStep, result: StepResult, now: float) -> StepOutputs:
        """Takes in a result, in the order of the steps. What it names only for ended requests is dropped."""
        assert step.step_id == result.step_id == self._last_collected + 1, (step.step_id, result.step_id)
        table = self.table
        counts = step.samples & (step.generation == table.generation[step.rows])
        indices = np.flatnonzero(counts)
        rows, tokens = step.rows[indices], result.sampled[indices, 0]
        known_before = table.num_known[rows]
        table.history[rows, known_before] = tokens
        table.num_known[rows] = known_before + 1
        table.num_inflight[rows] -= 1
        is_first = known_before == table.num_at_arrival[rows]
        intervals = now - table.last_token_time[rows]
        table.last_token_time[rows] = now
        for row in rows[is_first]:
            table.request(row).first_token_time = now
        self._register_sampled_blocks(rows, known_before)
        if self.kv.has_windows:
            self._release_behind_windows(step)
        finished = self._find_finished(rows, tokens, known_before)
        self._last_collected = step.step_id
        self._give_back_retired()
        return StepOutputs(indices, rows, tokens, intervals, is_first, finished)

    # Running requests

    def _schedule_running(self, writer: PlanWriter) -> tuple[np.ndarray, np.ndarray]:
        """Rows and token counts (int32) of running requests that fit the budget and have their blocks."""
        if self._running_changed:
            self._running_rows = np.array([request.row for request in self._running], np.int32)
            self._running_changed = False
        rows, table = self._running_rows, self.table
        planned = table.num_known[rows] + table.num_inflight[rows]
        pending = planned - table.num_computed[rows]
        ready = (planned < table.limit[rows]) & (pending > 0)
        single = ready & (pending == 1)
        several = ready & (pending > 1)
        rows = np.concatenate([rows[single], rows[several]])
        counts = np.concatenate([pending[single], pending[several]])
        starts = np.cumsum(counts) - counts
        counts = np.clip(self.config.max_num_batched_tokens - starts, 0, counts)
        rows, counts = rows[counts > 0], counts[counts > 0]
        rows, counts = self._grow_tables(writer, rows, counts)
        for row, end in zip(rows[counts > 1], (table.num_computed[rows] + counts)[counts > 1], strict=True):
            self._register_prompt_blocks(int(row), int(end))
        return rows, counts

    def _grow_tables(self, writer: PlanWriter, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Appends the blocks that the rows' new tokens need, preempting where there are too few."""
        table = self.table
        missing = -(-(table.num_computed[rows] + counts) // self.kv.block_size) - table.num_blocks[rows]
        growing = np.flatnonzero(missing > 0)
        if len(growing) == 0:
            return rows, counts
        runs = np.ones(len(rows), np.bool_)
        grown: list[tuple[Request, list[list[int]]]] = []
        num_preemptions, num_groups = self.num_preemptions, self.kv.num_groups
        requests = [table.request(rows[index]) for index in growing]  # a preempted one may leave the table at once
        for index, request in zip(growing, requests, strict=True):
            count = int(missing[index]) * num_groups
            if request.status is RequestStatus.RUNNING and self._make_room(request, count):
                grown.append((request, self.kv.append(request, int(missing[index]))))
            else:
                runs[index] = False
        entries: list[tuple[int, int, int, int]] = []
        for request, blocks in grown:
            if request.status is RequestStatus.RUNNING:  # else it was preempted for a later one in this same loop
                row, length = request.row, len(request.block_tables[0])
                for group, new in enumerate(blocks):
                    entries += [(group, row, index, block) for index, block in enumerate(new, length - len(new))]
                table.num_blocks[row] = length
        if entries:
            writer.add_entries(entries)
        if self.num_preemptions != num_preemptions:
            runs &= np.array([table.is_running(row) for row in rows], np.bool_)
        return rows[runs], counts[runs]

    def _make_room(self, request: Request, count: int) -> bool:
        """Sees to `count` free blocks, preempting from the end of the policy order; False: not in this step."""
        pool = self.kv.pool
        while pool.num_available < count:
            if pool.num_available + self._num_retiring_blocks + self._num_blocks_behind() >= count:
                return False  # blocks of ended requests and behind windows come back with the steps in flight
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _num_blocks_behind(self) -> int:
        """Blocks that running requests hold for steps in flight only: no step after them sees these."""
        if not self.kv.has_windows:
            return 0
        rows = np.array([request.row for request in self._running], np.int32)
        behind = self.kv.count_behind(self.table.num_computed[rows])
        return self.kv.num_blocks_behind(behind, self.table.num_behind[rows])

    def _preempt(self, request: Request) -> None:
        """Sends a running request back to the queue; its blocks are given up and computed again later."""
        self._leave_running(request)
        request.transition(RequestStatus.WAITING)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(request)
        self._retire(request)

    # Waiting requests

    def _admit(
        self, writer: PlanWriter, rows: np.ndarray, counts: np.ndarray, now: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Starts waiting requests in order while budget, rows and blocks last."""
        budget = self.config.max_num_batched_tokens - int(counts.sum())
        new_rows: list[int] = []
        new_counts: list[int] = []
        while budget > 0 and self.table.num_free > 0:
            request = self.waiting.peek()
            if request is None or request.row >= 0:  # a preempted one whose last tokens are still in flight
                break
            # The queue's head waits for blocks; its prefix is not looked up again in every step until then.
            if self._running and self._refused == (request, self.kv.pool.num_available):
                break
            count = self._start(request, writer, budget, now)
            if count == 0:
                break
            new_rows.append(request.row)
            new_counts.append(count)
            budget -= count
        if not new_rows:
            return rows, counts
        return (
            np.concatenate([rows, np.array(new_rows, np.int32)]),
            np.concatenate([counts, np.array(new_counts, counts.dtype)]),
        )

    def _start(self, request: Request, writer: PlanWriter, budget: int, now: float) -> int:
        """Gives the request its row and first blocks; returns how many tokens it computes, 0 when it must wait."""
        kv, known = self.kv, len(request.tokens)
        if request.sampling.uses_penalties and not self._free_penalty_slots:
            return 0
        hits = kv.find_prefix(request, request.tokens)
        num_hit = hits.num_blocks * kv.block_size
        count = min(known - num_hit, budget)
        total_blocks = kv.num_blocks_for(num_hit + count)
        new_blocks = total_blocks - hits.num_blocks
        wanted = new_blocks * kv.num_groups
        if self._running:
            # Room for all known tokens and one more block, so that what was preempted does not come back to fail again.
            comfortable = min(self._demand.peak(known) + kv.num_groups, self._demand.peak(request.limit))
            wanted = max(wanted, comfortable - hits.num_blocks * kv.num_groups)
        if kv.num_available_beside(hits) < wanted:
            self._refused = (request, kv.pool.num_available)
            return 0
        if not writer.has_room_for(request, total_blocks * kv.num_groups, self._eos):
            return 0
        self.waiting.pop()
        request.transition(RequestStatus.RUNNING)
        kv.start_table(request, hits, known)
        kv.append(request, new_blocks)
        if request.sampling.uses_penalties:
            request.penalty_slot = self._free_penalty_slots.pop()
        if request.scheduled_time is None:
            request.scheduled_time = now
            request.num_cached_tokens = num_hit
        row = self.table.take(request, num_hit)
        bisect.insort(self._running, request, key=lambda other: other.order)
        self._running_changed = True
        writer.start_row(request, num_hit, self._eos)
        for group in range(kv.num_groups):
            first, blocks = kv.held_entries(request, group)
            writer.add_blocks(row, first, blocks, group)
        self._register_prompt_blocks(row, num_hit + count)
        return count

    def _fill_tokens(self, plan: StepPlan, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes the token ids that the workers cannot know yet. Returns int32 `num_given` and `samples` per row."""
        table = self.table
        starts, known = table.num_computed[rows], table.num_known[rows]
        ends = starts + counts
        samples = (ends == known + table.num_inflight[rows]).astype(np.int32)
        given = np.where(ends > known, 0, counts).astype(np.int32)
        single = np.flatnonzero(given == 1)
        several = np.flatnonzero(given > 1)
        offsets = np.cumsum(given) - given
        plan.token_ids[offsets[single]] = table.history[rows[single], starts[single]]
        for index in several:
            row, start, offset = rows[index], starts[index], offsets[index]
            plan.token_ids[offset : offset + given[index]] = table.history[row, start : ends[index]]
        return given, samples

    # Cache

    def _register_prompt_blocks(self, row: int, num_computed: int) -> None:
        """Blocks that this step fills with known tokens can be found from now on, by requests of this step too."""
        known = min(num_computed, int(self.table.num_known[row]))
        self.kv.register_full(self.table.request(row), self.table.history[row, :known])

    def _register_sampled_blocks(self, rows: np.ndarray, known_before: np.ndarray) -> None:
        """The token before the collected one is computed for certain: where it ends a block, that block is complete."""
        for row in rows[known_before % self.kv.block_size == 0]:
            request = self.table.request(row)
            if request.status is RequestStatus.RUNNING:
                self.kv.register_full(request, self.table.history[row, : self.table.num_known[row] - 1])

    def _release_behind_windows(self, step: ScheduledStep) -> None:
        """Steps after the collected one begin where it ended, so nothing before that place's window is read again."""
        table = self.table
        is_current = step.generation == table.generation[step.rows]
        rows, behind = step.rows[is_current], self.kv.count_behind(step.ends[is_current])
        for index in np.flatnonzero(behind > table.num_behind[rows]):
            request = table.request(rows[index])
            if request.status is RequestStatus.RUNNING:
                self.kv.release_behind(request, int(behind[index]))
                table.num_behind[request.row] = request.num_behind

    # Ends

    def _find_finished(self, rows: np.ndarray, tokens: np.ndarray, known_before: np.ndarray) -> list[Finished]:
        """Ends the requests whose new token is their last."""
        table = self.table
        may_stop = known_before >= table.earliest_stop[rows]
        is_eos = np.zeros(len(rows), np.bool_)
        for eos in self._eos:
            is_eos |= tokens == eos
        stops = is_eos & table.checks_eos[rows]
        for index in np.flatnonzero(table.has_stop_ids[rows]):
            stops[index] |= int(tokens[index]) in table.request(rows[index]).stop_token_ids
        stops &= may_stop
        at_limit = known_before + 1 >= table.limit[rows]
        finished = []
        for index in np.flatnonzero(stops | at_limit):
            request = table.request(rows[index])
            if stops[index]:
                finished.append(self._finish(request, FINISH_STOP, int(tokens[index])))
            else:
                finished.append(self._finish(request, FINISH_LENGTH, None))
        return finished

    def _finish(self, request: Request, reason: str, stop_token_id: int | None) -> Finished:
        known = len(request.tokens) if request.row < 0 else int(self.table.num_known[request.row])
        if request.status is RequestStatus.RUNNING:
            self._leave_running(request)
            request.transition(RequestStatus.FINISHED)
            self.table.drop_results(request.row)
            self._retire(request)
        else:
            self.waiting.forget()
            request.transition(RequestStatus.FINISHED)
            if request.row >= 0:
                self.table.drop_results(request.row)
        return Finished(request, reason, stop_token_id, known - request.num_prompt_tokens)

    def _leave_running(self, request: Request) -> None:
        index = bisect.bisect_left(self._running, request.order, key=lambda other: other.order)
        assert self._running[index] is request
        del self._running[index]
        self._running_changed = True

    def _retire(self, request: Request) -> None:
        """Row and blocks return at once when no step in flight names the row, else with the last that does."""
        if self.table.last_step[request.row] <= self._last_collected:
            self._give_back(request)
        else:
            self._retiring.append(request)
            self._num_retiring_blocks += self.kv.num_held(request)

    def _give_back_retired(self) -> None:
        still: deque[Request] = deque()
        for request in self._retiring:
            if self.table.last_step[request.row] <= self._last_collected:
                self._num_retiring_blocks -= self.kv.num_held(request)
                self._give_back(request)
            else:
                still.append(request)
        self._retiring = still

    def _give_back(self, request: Request) -> None:
        """Frees row, blocks and penalty slot; a preempted request takes its tokens along."""
        if request.status is RequestStatus.WAITING:
            request.tokens = self.table.known_tokens(request.row).copy()
        self.kv.release(request)
        if request.penalty_slot >= 0:
            self._free_penalty_slots.append(request.penalty_slot)
            request.penalty_slot = -1
        self.table.give_back(request.row)
