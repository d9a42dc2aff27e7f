"""Steps whose rows yield several tokens: where they end, what counts of them, and plans that contradict themselves."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine_core.config.engine_config import SchedulerConfig
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import StepPlan, StepResult
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.metrics import Metrics
from engine_core.plan_writer import PlanWriter
from engine_core.policies.fair_share import FairShare
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.step_records import StepOutputs
from tests.engine_core.fake_worker import FakeWorker, step_shape

EOS, STOP = 1, 5
NUM_DRAFTS = 3
PROMPT = [2, 3]


class Load:
    """A scheduler whose workers draft, with one request for each of `samplings`, all of them past their prompts."""

    def __init__(self, *samplings: SamplingParams, num_drafts: int = NUM_DRAFTS, policy: str = "fcfs") -> None:
        config = SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=32,
            max_model_len=64,
            max_num_waiting=4,
            max_num_penalty_rows=1,
            scheduling_policy=policy,  # type: ignore[arg-type]
        )
        self.scheduler = Scheduler(config, KVCacheManager(64, 4, True), (EOS,), num_drafts)
        self.worker = FakeWorker(step_shape(config, 4, num_speculative_tokens=num_drafts), 64, lambda tokens: 9)
        for number, sampling in enumerate(samplings):
            self.scheduler.add(
                Request(
                    request_id=str(number),
                    client=b"",
                    handle=number,
                    prompt_token_ids=[*PROMPT, 20 + number],
                    sampling=sampling,
                    max_total_tokens=64,
                    arrival_time=0.0,
                    arrival_number=number,
                    share_key=str(number),
                )
            )
        self.step([[9]] * len(samplings), now=1.0)

    def step(self, tokens: list[list[int]], now: float = 2.0) -> StepOutputs:
        """Plans a step and takes in these tokens as its rows'."""
        plan = self.worker.new_plan()
        step = self.scheduler.schedule(plan, now)
        assert step is not None
        result = self.result(plan, tokens)
        return self.scheduler.update(step, result, now)

    def result(self, plan: StepPlan, tokens: list[list[int]]) -> StepResult:
        self.worker.dispatch(plan)
        result = self.worker.run_next(accepts=lambda index: len(tokens[index]) - 1)
        for index, span in enumerate(tokens):
            assert result.num_sampled[index] == len(span)
            result.sampled[index, : len(span)] = span
        return result


def params(**values: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampling", "span", "kept", "reason"),
    [
        (params(), [7, 8, 9], 3, None),
        (params(), [7, EOS, 9], 2, "stop"),
        (params(), [EOS, EOS, EOS, EOS], 1, "stop"),
        (params(ignore_eos=True), [7, EOS, 9], 3, None),
        (params(ignore_eos=True, stop_token_ids=[STOP]), [EOS, 8, STOP, 9], 3, "stop"),
        (params(min_tokens=3), [EOS, EOS, 9], 3, None),
        (params(min_tokens=2), [EOS, EOS, 9], 2, "stop"),
        (params(max_tokens=4), [7, 8, 9], 3, "length"),
        (params(max_tokens=4), [7, 8, EOS], 3, "stop"),
        (params(max_tokens=3), [7, 8], 2, "length"),
    ],
)
def test_an_output_ends_inside_of_a_span(
    sampling: SamplingParams, span: list[int], kept: int, reason: str | None
) -> None:
    """The first token came with the prompt; no row drafts past its limit."""
    load = Load(params(), sampling, params())
    outputs = load.step([[7, 8], span, [6]])
    assert outputs.counts.tolist() == [2, kept, 1]
    assert outputs.token_ids.tolist() == [7, 8, *span[:kept], 6]
    assert [finished.reason for finished in outputs.finished] == ([] if reason is None else [reason])
    for finished in outputs.finished:
        assert finished.num_output_tokens == 1 + kept
        assert finished.stop_token_id == (span[kept - 1] if reason == "stop" else None)
    assert load.scheduler.table.known_tokens(0).tolist() == [*PROMPT, 20, 9, 7, 8]


def test_blocks_that_a_span_ends_can_be_found() -> None:
    load = Load(params())
    blocks = load.scheduler.table.request(0).block_tables[0]
    assert load.scheduler.kv.pool.num_findable == 0
    load.step([[7, 8, 9, 10]])  # 8 tokens are known, of which the last one is not computed
    assert load.scheduler.kv.pool.num_findable == 1
    load.step([[7]])
    assert load.scheduler.kv.pool.num_findable == 2
    assert load.scheduler.table.request(0).block_tables[0] is blocks


def test_what_is_counted_of_a_span() -> None:
    load = Load(params(), params(), policy="fair")
    policy, table = load.scheduler.policy, load.scheduler.table
    assert isinstance(policy, FairShare)
    metrics = Metrics(load.scheduler, "m", 0)
    before = policy.ranks(np.arange(2))
    metrics.step(0, load.step([[7, 8, 9], [7]], now=1.5), 1.5)
    assert (policy.ranks(np.arange(2)) - before).tolist() == [6.0, 2.0]
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }
    assert found["vllm:generation_tokens_total", None] == 4
    assert found["vllm:time_to_first_token_seconds_count", None] == 0
    assert found["vllm:inter_token_latency_seconds_count", None] == 4
    assert found["vllm:inter_token_latency_seconds_bucket", "0.2"] == 3  # a third of half a second each
    assert found["vllm:inter_token_latency_seconds_sum", None] == pytest.approx(1.0)
    assert table.num_known[:2].tolist() == [7, 5]


def test_drafts_take_nothing_that_rows_need() -> None:
    """Neither tokens of the budget that other rows have a right to, nor blocks that are not there."""
    load = Load(params(), params(), params())
    plan = load.worker.new_plan()
    assert load.scheduler.schedule(plan, 2.0) is not None
    assert plan.num_drafted[:3].tolist() == [3, 3, 3]
    load.scheduler.kv.pool.allocate(load.scheduler.kv.pool.num_available)
    load.result(plan, [[7], [7], [7]])
    plan = load.worker.new_plan()
    step = load.scheduler.schedule(plan, 3.0)
    assert step is None or not plan.num_drafted[: plan.num_seqs].any()


@pytest.mark.parametrize(("num_drafts", "count"), [(0, 2), (3, 5)])
def test_a_draft_that_is_not_configured_is_a_failed_assertion(num_drafts: int, count: int) -> None:
    load = Load(params(), num_drafts=num_drafts)
    writer = PlanWriter(load.worker.new_plan())
    wanted = rf"{count} tokens, 1 of them given and {count - 1} drafted, for row 0 of Request\('0', running, row=0\)"
    with pytest.raises(AssertionError, match=wanted):
        writer.finish(3, load.scheduler.table, np.array([0]), np.array([count], np.int32))


def test_tokens_that_nobody_knows_cannot_be_given() -> None:
    load = Load(params())
    load.scheduler.table.num_planned[0] += 2
    writer = PlanWriter(load.worker.new_plan())
    with pytest.raises(AssertionError, match=r"3 tokens, 2 of them given .*'num_known': 4, 'num_planned': 6"):
        writer.finish(3, load.scheduler.table, np.array([0]), np.array([3], np.int32))
