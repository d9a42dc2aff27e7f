"""2,000 steps of random requests, planned as they were when the trace was recorded.

`plan_trace.txt` has a digest of every tenth plan and all before it. Plans are compared by what they mean, so a field
may move in memory, but no number in it may change. `python -m tests.engine_core.test_plan_trace` records it again,
which is right only for a change that is meant to plan differently.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from engine_core.common_beginning import CommonBeginning
from engine_core.config.engine_config import PolicyName, SchedulerConfig
from engine_core.host_tier import HostTier
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import NUM_BLOCK_DELTAS, NUM_BULK, NUM_GIVEN, NUM_ROW_INITS, NUM_SHARING_SEQS, StepPlan
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.step_records import ScheduledStep
from tests.engine_core.fake_worker import FakeWorker, step_shape

RECORDED = Path(__file__).with_name("plan_trace.txt")
STEPS_PER_CASE, STEPS_PER_DIGEST = 500, 10
EOS, VOCAB, BLOCK_SIZE, MAX_MODEL_LEN = 1, 50, 4, 96

CASES: list[tuple[PolicyName, tuple[int, ...], int, int]] = [
    ("fcfs", (0,), 0, 3),
    ("priority", (0, 8), 0, 2),
    ("fair", (0,), 24, 2),
    ("fcfs", (12,), 12, 1),
]
"""Scheduling policy, sliding window of each layer group, blocks in host memory, steps in flight."""

RECORD_FIELDS = [
    "row",
    "num_computed_tokens",
    "num_prompt_tokens",
    "num_output_tokens",
    "min_tokens",
    "top_k",
    "num_logprobs",
    "sample_index",
    "seed_low",
    "seed_high",
    "penalty_slot",
    "history_offset",
    "history_length",
    "bias_offset",
    "bias_length",
    "stop_offset",
    "stop_length",
    "allowed_offset",
    "allowed_length",
    "sequences_offset",
    "num_sequences",
    "thinking_budget",
    "thinking_begin",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
]
"""Those that were there when the trace was recorded."""


def next_token(tokens: list[int]) -> int:
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 10007
    return value % VOCAB


def canonical(plan: StepPlan) -> Iterator[bytes]:
    """All that the plan says, in an order of its own."""
    num_seqs, header = plan.num_seqs, plan.header
    counts = [int(header[index]) for index in (NUM_GIVEN, NUM_ROW_INITS, NUM_BLOCK_DELTAS, NUM_BULK)]
    num_given, num_inits, num_deltas, num_bulk = counts
    num_tops = plan.num_scored_tops if plan.num_scored else 0
    more = [plan.num_tokens, plan.num_masks, plan.num_stores, plan.num_loads, plan.num_scored, num_tops]
    shared = [plan.num_shared_keys, int(header[NUM_SHARING_SEQS])]
    yield repr([num_seqs, *counts, *more, *shared]).encode()
    for array, count in (
        (plan.rows, num_seqs),
        (plan.num_query_tokens, num_seqs),
        (plan.num_given, num_seqs),
        (plan.samples, num_seqs),
        (plan.token_ids, num_given),
        *((plan.row_inits[name], num_inits) for name in RECORD_FIELDS),
        (plan.block_deltas, num_deltas),
        (plan.bulk, num_bulk),
        (plan.scored_indices, plan.num_scored),
        (plan.scored_token_ids, plan.num_scored),
        (plan.stores, plan.num_stores),
        (plan.loads, plan.num_loads),
        (plan.mask_rows, plan.num_masks),
    ):
        yield np.ascontiguousarray(array[:count]).tobytes()


class _Drive:
    """One case: requests come, are aborted, and go on, all drawn from one seed."""

    def __init__(self, policy: PolicyName, windows: tuple[int, ...], num_host_blocks: int, depth: int) -> None:
        self.config = SchedulerConfig(
            max_num_seqs=8,
            max_num_batched_tokens=24,
            max_model_len=MAX_MODEL_LEN,
            max_num_waiting=100,
            max_num_penalty_rows=3,
            max_num_partial_prefills=2,
            scheduling_policy=policy,
            priority_ageing_rate=0.2,
            steps_in_flight=depth,
        )
        num_blocks = 30 * len(windows)
        shape = step_shape(self.config, BLOCK_SIZE, len(windows), num_host_blocks)
        host = HostTier(num_host_blocks, shape.max_stores, shape.max_loads, 6) if num_host_blocks else None
        manager = KVCacheManager(num_blocks, BLOCK_SIZE, True, host=host, windows=windows)
        self.scheduler = Scheduler(self.config, manager, (EOS,))
        self.scheduler._beginning = CommonBeginning(self.scheduler.table, manager, min_rows=2)
        self.worker = FakeWorker(shape, num_blocks, next_token, windows)
        self.random = random.Random(f"{policy} {windows}")
        self.inflight: list[ScheduledStep] = []
        self.live: dict[str, Request] = {}
        self.num_added = 0
        self.now = 0.0

    def plans(self) -> Iterator[StepPlan]:
        """In the order in which they are dispatched, without end."""
        while True:
            self.now += 1.0
            self._clients()
            self.scheduler.table.awaits_mask[:] = False
            while len(self.inflight) < self.config.steps_in_flight:
                plan = self.worker.new_plan()
                step = self.scheduler.schedule(plan, self.now, enough_tokens=self._below(40) or 2**31)
                if step is None:
                    break
                self.worker.dispatch(plan)
                self.inflight.append(step)
                yield plan
            if self.inflight:
                late = self._below(16) * (self._below(3) == 0)
                result = self.worker.run_next(lambda mask, late=late: bool(late >> mask & 1))
                outputs = self.scheduler.update(self.inflight.pop(0), result, self.now)
                for finished in outputs.finished:
                    del self.live[finished.request.request_id]

    def _below(self, bound: int) -> int:
        return self.random.randrange(bound)

    def _clients(self) -> None:
        while len(self.live) < 14 and self._below(3):
            self._add()
        if self.live and self._below(25) == 0:
            names = sorted(self.live)
            self.scheduler.abort(self.live.pop(names[self._below(len(names))]))
        if self._below(40) == 0:
            self.scheduler.hash_ahead()

    def _add(self) -> None:
        prompt = [2] * self._below(30) + [self._below(VOCAB) for _ in range(1 + self._below(30))]
        has_grammar = self._below(6) == 0
        sampling = self._sampling(has_grammar)
        output = [self._below(VOCAB)] * self._below(3)
        for sample in range(1 + 2 * (self._below(8) == 0)):
            self.num_added += 1
            request = Request(
                request_id=f"r{self.num_added}",
                client=b"c",
                handle=self.num_added,
                prompt_token_ids=prompt,
                output_token_ids=output[: sampling.max_tokens - 1],
                sampling=msgspec.structs.replace(sampling, sample_index=sample),
                max_total_tokens=MAX_MODEL_LEN,
                arrival_time=self.now,
                arrival_number=self.num_added,
                priority=self._below(3),
                share_key=(None, "a", "b")[self._below(3)],
            )
            request.matcher = self.num_added if has_grammar else 0
            self.scheduler.add(request)
            self.live[request.request_id] = request

    def _sampling(self, has_grammar: bool) -> SamplingParams:
        """Each field is set in some of the requests."""

        def ids(count: int) -> list[int]:
            return [self._below(VOCAB) for _ in range(count)]

        def sometimes(value: float, default: float) -> float:
            return value if self._below(4) == 0 else default

        has_budget = self._below(6) == 0
        max_tokens = 1 + self._below(24)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=0 if has_grammar else int(sometimes(self._below(max_tokens), 0)),
            temperature=sometimes(0.5 + self._below(4), 0.0),
            top_p=sometimes(0.9, 1.0),
            top_k=int(sometimes(self._below(9), 0)),
            min_p=sometimes(0.05, 0.0),
            seed=self._below(2**40),
            repetition_penalty=sometimes(1.1, 1.0),
            presence_penalty=sometimes(0.5, 0.0),
            frequency_penalty=sometimes(-0.25, 0.0),
            logit_bias=dict.fromkeys(ids(2 * (self._below(5) == 0)), 0.5),
            allowed_token_ids=ids(5) if self._below(8) == 0 else None,
            bad_words_token_ids=[ids(2)] if self._below(6) == 0 else [],
            thinking_token_budget=self._below(5) if has_budget else None,
            thinking_start_token_ids=[3],
            thinking_end_token_ids=[4, 5],
            stop_token_ids=ids(int(sometimes(2, 0))),
            ignore_eos=not has_grammar and self._below(3) == 0,
            logprobs=self._below(4) if self._below(5) == 0 else None,
            prompt_logprobs=self._below(3) if self._below(7) == 0 else None,
        )


def digests() -> Iterator[str]:
    for case in CASES:
        running = hashlib.sha256()
        for number, plan in zip(range(1, STEPS_PER_CASE + 1), _Drive(*case).plans(), strict=False):
            for part in canonical(plan):
                running.update(part)
            if number % STEPS_PER_DIGEST == 0:
                yield running.hexdigest()[:16]


def test_plans_are_those_of_before():
    for number, (found, recorded) in enumerate(zip(digests(), RECORDED.read_text().split(), strict=True), start=1):
        first = (number - 1) * STEPS_PER_DIGEST
        assert found == recorded, f"a plan differs among those from {first} to {first + STEPS_PER_DIGEST}"


if __name__ == "__main__":
    RECORDED.write_text("".join(f"{digest}\n" for digest in digests()))
