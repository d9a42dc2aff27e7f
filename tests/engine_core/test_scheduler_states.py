"""The scheduler as a hypothesis state machine: any order of arrivals, aborts, steps and results, several in flight."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.common_beginning import CommonBeginning
from engine_core.config.engine_config import PolicyName, SchedulerConfig
from engine_core.config.layer_groups import BlockDemand
from engine_core.host_tier import HostTier
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import NUM_SHARING_SEQS, StepPlan
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import NO_BLOCK
from engine_core.request import Request, RequestStatus
from engine_core.scheduler import Scheduler
from engine_core.step_records import ScheduledStep
from tests.engine_core.fake_worker import FakeWorker, step_shape
from tests.engine_core.scheduler_checks import check_owners
from tests.engine_core.state_machines import machine_settings
from tests.engine_core.toy_model import EOS, VOCAB, expected_output, next_token

MAX_MODEL_LEN = 24
AGEING_RATE = 0.2
STEPS_PER_REQUEST = 100
"""More than any request takes in this machine's sizes, its preemptions included."""


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler against the fake worker, which checks every plan, and compares every request's output."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(6, 20),
        max_num_seqs=st.integers(1, 5),
        budget_beyond=st.sampled_from([0, 1, 4, 11, 40]),
        caching=st.booleans(),
        groups=st.sampled_from([(1, 0), (1, 0), (0, 1), (1, 1), (1, 2)]),
        window=st.integers(2, 12),
        policy=st.sampled_from(get_args(PolicyName)),
        max_num_partial_prefills=st.integers(1, 3),
        steps_in_flight=st.integers(1, 3),
        num_host_blocks=st.sampled_from([0, 1, 4, 30]),
        max_loads=st.integers(1, 3),
        num_speculative_tokens=st.sampled_from([0, 1, 4]),
    )
    def build(
        self,
        block_size: int,
        num_blocks: int,
        max_num_seqs: int,
        budget_beyond: int,
        caching: bool,
        groups: tuple[int, int],
        window: int,
        policy: PolicyName,
        max_num_partial_prefills: int,
        steps_in_flight: int,
        num_host_blocks: int,
        max_loads: int,
        num_speculative_tokens: int,
    ) -> None:
        """`groups`: how many layer groups see all tokens, and how many through a sliding window. `budget_beyond`:
        tokens of a step beyond one for each request; with none, prompts advance token by token."""
        budget = max_num_seqs + budget_beyond
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            max_num_waiting=100,
            max_num_penalty_rows=2,
            max_num_partial_prefills=max_num_partial_prefills,
            scheduling_policy=policy,
            priority_ageing_rate=AGEING_RATE,
            steps_in_flight=steps_in_flight,
        )
        self.policy, self.caching = policy, caching
        windows = (0,) * groups[0] + (window,) * groups[1]
        num_blocks *= len(windows)
        self.demand = BlockDemand.of(windows, block_size, budget)
        shape = step_shape(config, block_size, len(windows), num_host_blocks, num_speculative_tokens)
        host = None
        if num_host_blocks:
            host = HostTier(num_host_blocks, shape.max_stores, shape.max_loads, min(max_loads, shape.max_loads))
        kv_cache_manager = KVCacheManager(num_blocks, block_size, caching, host=host, windows=windows)
        self.scheduler = Scheduler(config, kv_cache_manager, (EOS,), num_speculative_tokens)
        self.scheduler._beginning = CommonBeginning(self.scheduler.table, kv_cache_manager, min_rows=2)
        self.worker = FakeWorker(shape, num_blocks, next_token, windows)
        self.inflight: list[ScheduledStep] = []
        self.live: dict[str, tuple[Request, list[int]]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.now = 0.0
        """Grows by 1 with each step that is collected."""
        self.num_added = 0
        self.last_service: dict[str, float] = {}
        self.most_live = 0
        self.written: list[dict[int, tuple[str, int, int]]] = []
        """For each step in flight the blocks that it may write: for whom, in which row, at which index of its table."""

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20),
        max_tokens=st.integers(0, 14),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        stops=st.lists(st.integers(2, VOCAB - 1), max_size=1),
        priority=st.integers(0, 2),
        share_key=st.sampled_from([None, "a", "b", "c"]),
        num_samples=st.sampled_from([1, 1, 1, 2, 4]),
        penalty=st.booleans(),
        has_grammar=st.booleans(),
        is_scored=st.booleans(),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        stops: list[int],
        priority: int,
        share_key: str | None,
        num_samples: int,
        penalty: bool,
        has_grammar: bool,
        is_scored: bool,
    ) -> None:
        """One request, or several samples of one prompt. Prompts behind which nothing is sampled are scored."""
        max_total = self.demand.longest(self.scheduler.kv.pool.num_blocks, self.scheduler.config.max_model_len)
        if len(prompt) + min(max_tokens, 1) > max_total or (len(prompt) == 1 and max_tokens == 0):
            return
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            ignore_eos=ignore_eos and not has_grammar,  # an answer under a grammar ends with EOS
            stop_token_ids=stops,
            presence_penalty=0.5 if penalty else 0.0,
            prompt_logprobs=0 if is_scored or max_tokens == 0 else None,
        )
        first_sample = None
        for _ in range(num_samples):
            self.num_added += 1
            request = Request(
                request_id=f"r{self.num_added}",
                client=b"c",
                handle=self.num_added,
                first_sample=first_sample,
                prompt_token_ids=prompt,
                sampling=sampling,
                max_total_tokens=max_total,
                arrival_time=self.now,
                arrival_number=self.num_added,
                priority=priority,
                share_key=share_key,
            )
            first_sample = first_sample or request
            request.matcher = self.num_added if has_grammar else 0
            self.scheduler.add(request)
            self.live[request.request_id] = (request, expected_output(prompt, sampling, request.limit))
            self.outputs[request.request_id] = []
            self.last_service[request.request_id] = self.now
        self.most_live = max(self.most_live, len(self.live))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        request, expected = self.live.pop(request_id)
        self.scheduler.abort(request)
        output = self.outputs.pop(request_id)
        assert output == expected[: len(output)]

    @rule()
    def forget_all(self) -> None:
        """What was cached is lost to others; who runs goes on."""
        self.scheduler.kv.forget_all()
        assert self.scheduler.kv.pool.num_cached == 0

    @rule()
    def hash_ahead(self) -> None:
        self.scheduler.hash_ahead()

    @rule(num_steps=st.integers(1, 12), late_masks=st.integers(0, 2**12 - 1), accepted=st.integers(0, 4))
    def serve(self, num_steps: int, late_masks: int, accepted: int) -> None:
        """As the engine core goes on by itself: the pipeline is filled, then the oldest step is collected. Step k is
        late with all its masks where bit k of `late_masks` is set."""
        for number in range(num_steps):
            self.masks_come()
            while len(self.inflight) < self.scheduler.config.steps_in_flight and self._schedule():
                pass
            if self.inflight:
                self.collect(-(late_masks >> number & 1), [accepted, number % 5])
            self.blocks_and_rows_add_up()

    @rule()
    def masks_come(self) -> None:
        """Rows that steps have skipped can be planned again."""
        self.scheduler.table.awaits_mask[:] = False

    @rule()
    def schedule(self) -> None:
        self._schedule()

    def _schedule(self) -> bool:
        """Plans a step; False when nothing can run now."""
        if len(self.inflight) == self.scheduler.config.steps_in_flight:
            return False
        plan = self.worker.new_plan()
        waiting = {r.request_id for r, _ in self.live.values() if r.status is RequestStatus.WAITING}
        step = self.scheduler.schedule(plan, self.now)
        if step is None:
            awaits = (self.scheduler.table.awaits_mask & self.scheduler.table.running).any()
            assert self.inflight or awaits or not self.scheduler.has_unfinished, "nothing runs although requests wait"
            return False
        assert plan.num_tokens <= self.scheduler.config.max_num_batched_tokens
        self._check_order(waiting)
        self._note_writes(plan)
        self._check_common_beginning(plan)
        self.worker.dispatch(plan)
        self.inflight.append(step)
        return True

    def _check_order(self, waited: set[str]) -> None:
        """Under a policy of fixed ranks nobody starts before one who comes first and still waits."""
        if self.policy == "fair":
            return

        def key(request: Request) -> tuple[float, int]:
            aged = request.priority + AGEING_RATE * request.arrival_time
            return (aged if self.policy == "priority" else 0.0, request.arrival_number)

        started, waiting = [], []
        for request, _ in self.live.values():
            if request.status is RequestStatus.RUNNING and request.request_id in waited:
                started.append(key(request))
            elif request.status is RequestStatus.WAITING:
                waiting.append(key(request))
        assert not started or not waiting or max(started) < min(waiting)

    def _note_writes(self, plan: StepPlan) -> None:
        """No block is written by two requests, neither in one step nor in any that are in flight."""
        table, block_size = self.scheduler.table, self.scheduler.kv.block_size
        writes: dict[int, tuple[str, int, int]] = {}
        for row, count in zip(plan.rows[: plan.num_seqs].tolist(), plan.num_query_tokens.tolist(), strict=False):
            request, end = table.request(row), int(table.num_computed[row])
            num_drafts = sum(int((s.num_expected[s.rows == row] - 1).clip(0).sum()) for s in self.inflight)
            first = (end - count - num_drafts) // block_size  # where steps in flight accept none of theirs
            for entries in request.block_tables:
                for index in range(first, -(-end // block_size)):
                    block, name = entries[index], request.request_id
                    assert block != NO_BLOCK
                    assert all(step.get(block, (name,))[0] == name for step in (*self.written, writes))
                    writes[block] = (name, row, index)
            self.last_service[request.request_id] = self.now
        self.written.append(writes)

    def _check_common_beginning(self, plan: StepPlan) -> None:
        """What the plan says to be common to rows is, in their tables, and computed in all of them."""
        table, block_size = self.scheduler.table, self.scheduler.kv.block_size
        rows = plan.rows[: int(plan.header[NUM_SHARING_SEQS])].tolist()
        tables = [table.request(row).block_tables[0] for row in rows]
        for entry in range(-(-plan.num_shared_keys // block_size)):
            assert len({blocks[entry] for blocks in tables}) == 1, "not common to all"
        assert all(plan.num_shared_keys < int(table.num_computed[row]) for row in rows), "not computed yet"

    @precondition(lambda self: self.inflight)
    @rule(late_masks=st.integers(0, 2**5 - 1), accepted=st.lists(st.integers(0, 4), min_size=1, max_size=5))
    def collect(self, late_masks: int, accepted: list[int]) -> None:
        """Mask k of the step is late where bit k of `late_masks` is set. Its rows accept so many drafts as `accepted`
        says in turn are accepted."""
        self.now += 1.0
        self.written.pop(0)
        result = self.worker.run_next(
            lambda mask: bool(late_masks >> mask & 1), lambda index: accepted[index % len(accepted)]
        )
        step = self.inflight.pop(0)
        # Steps in flight begin where the worker stands now.
        starts = {row: self.worker.num_computed(row) // self.scheduler.kv.block_size for row in step.rows.tolist()}
        self.written = [
            {block: place for block, place in writes.items() if place[2] >= starts.get(place[1], 0)}
            for writes in self.written
        ]
        outputs = self.scheduler.update(step, result, self.now)
        assert (outputs.counts > 0).all()
        handles = np.repeat(self.scheduler.table.handle[outputs.rows], outputs.counts).tolist()
        for handle, token in zip(handles, outputs.token_ids.tolist(), strict=True):
            self.outputs[f"r{handle}"].append(token)
        for finished in outputs.finished:
            request, expected = self.live.pop(finished.request.request_id)
            assert self.outputs.pop(request.request_id) == expected
            assert finished.num_output_tokens == len(expected)
            assert finished.reason == ("length" if finished.stop_token_id is None else "stop")
            assert request.status is RequestStatus.FINISHED
            assert not request.wants_scores, "an end without all scores"

    @invariant()
    def blocks_and_rows_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        table = scheduler.table
        check_owners(scheduler)
        live = sum(r.status is not RequestStatus.FINISHED for r, _ in self.live.values())
        assert scheduler.num_running + scheduler.num_waiting == live
        for request in table.requests:
            if request is not None and request.status is RequestStatus.RUNNING:
                planned = int(table.num_planned[request.row])
                assert planned >= table.num_known[request.row], "a token that was not planned"
                assert planned <= request.limit, "a step is planned past the request's end"
                computed = int(table.num_computed[request.row])
                # A row that was skipped, or whose drafts were wrong, may have the blocks of its next tokens already.
                most_back = 1 if request.matcher else table.num_speculative_tokens
                ahead = computed + most_back * scheduler.config.steps_in_flight
                needed = range(scheduler.kv.num_blocks_for(computed), scheduler.kv.num_blocks_for(ahead) + 1)
                assert all(len(entries) in needed for entries in request.block_tables), "a block that nothing needs"
                if self.caching:
                    filled = min(computed, request.num_prompt_tokens) // scheduler.kv.block_size
                    assert request.num_registered_blocks >= filled, "a block of a prompt that nobody can find"
                if not self.inflight:
                    num_ahead = len(request.block_tables[0]) - scheduler.kv.num_blocks_for(computed)
                    most = self.demand.at_end(computed) + len(request.block_tables) * num_ahead
                    assert scheduler.kv.num_held(request) <= most, "a window's blocks stay"
                    first_seen = max(0, computed - self.demand.sliding_window + 1)
                    assert request.num_behind * scheduler.kv.block_size <= first_seen, "a block that is seen is gone"

    @invariant()
    def nobody_starves(self) -> None:
        """What is before a request in any policy's order is at most all that lives beside it."""
        if not hasattr(self, "scheduler"):
            return
        for request_id in self.live:
            assert self.now - self.last_service[request_id] <= STEPS_PER_REQUEST * self.most_live

    @invariant()
    def prompts_in_part_are_few(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        table = self.scheduler.table
        in_part = (table.num_known - table.num_computed > 1)[table.running]
        assert in_part.sum() <= self.scheduler.config.max_num_partial_prefills

    def teardown(self) -> None:
        """Every request ends once steps go on, and everything comes back."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if not self.live and not self.inflight:
                break
            self.serve(1, late_masks=0, accepted=3)
        assert not self.live, "requests starve"
        assert self.scheduler.kv.pool.num_owned == 0
        assert self.scheduler.table.num_free == len(self.scheduler.table.requests)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = machine_settings()


def test_the_fake_worker_finds_foreign_tokens() -> None:
    """The check that the machine relies on can fail: two rows that write one block are noticed."""
    config = SchedulerConfig(
        max_num_seqs=2, max_num_batched_tokens=8, max_model_len=8, max_num_waiting=1, max_num_penalty_rows=1
    )
    scheduler = Scheduler(config, KVCacheManager(4, 4, False), ())
    worker = FakeWorker(step_shape(config, 4), 4, next_token)
    for number in (1, 2):
        scheduler.add(
            Request(
                request_id=str(number),
                client=b"",
                handle=number,
                prompt_token_ids=[number, number],
                sampling=SamplingParams(max_tokens=2),
                max_total_tokens=8,
                arrival_time=0.0,
                arrival_number=number,
            )
        )
    plan = worker.new_plan()
    assert scheduler.schedule(plan, 0.0) is not None
    plan.block_deltas[:2, 3] = 0
    worker.dispatch(plan)
    with pytest.raises(AssertionError, match="another sequence"):
        worker.run_next()
