"""Floors against figures that were worked out apart from the code, and steps that add up to their work."""

import pytest

from benchmarks.floors import Ceilings, Costs, Step, plan_steps, step_seconds, work_floor
from benchmarks.works import Request, Work, make_work
from engine_core.config.model_config import ModelConfig

CEILINGS = Ceilings(read_bytes_per_second=4.3e12, flops_per_second=790e12)
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    path="",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
)
QWEN = ModelConfig(
    architecture="Qwen3ForCausalLM",
    path="",
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
    qk_norm=True,
)


def floor(model: ModelConfig, name: str) -> tuple[Work, list[float]]:
    work = make_work(name, model.vocab_size)
    return work, work_floor(work, Costs.of(model, "bfloat16"), CEILINGS, 256, 8192)


def test_costs_of_the_published_models() -> None:
    llama, qwen = Costs.of(LLAMA, "bfloat16"), Costs.of(QWEN, "bfloat16")
    assert llama.weight_bytes == pytest.approx(15.01e9, rel=1e-3)
    assert llama.kv_bytes == 131_072
    assert qwen.weight_bytes == pytest.approx(1.19e9, rel=5e-3)  # the tied matrix is read as the LM head
    assert qwen.kv_bytes == 114_688


@pytest.mark.parametrize(
    ("model", "name", "seconds"), [(LLAMA, "tput", 25.1), (QWEN, "nano", 3.70), (LLAMA, "prefill", 131_072 / 52.6e3)]
)
def test_floors_of_whole_works(model: ModelConfig, name: str, seconds: float) -> None:
    assert sum(floor(model, name)[1]) == pytest.approx(seconds, rel=3e-3)


def test_floor_of_decoding() -> None:
    for model, milliseconds in ((LLAMA, 3.49), (QWEN, 0.28)):
        steps = floor(model, "decode1")[1]
        assert sum(steps[1:]) / 255 * 1e3 == pytest.approx(milliseconds, rel=0.02)
    steps = floor(LLAMA, "decode64")[1]
    assert 4.45e-3 < min(steps[10:200]) < max(steps[10:200]) < 5.05e-3


@pytest.mark.parametrize("name", ["decode64", "prefix", "assistants", "nano"])
def test_steps_add_up_to_the_work(name: str) -> None:
    work = make_work(name, 1000, scale=4)
    steps = list(plan_steps(work, max_num_seqs=7, max_num_batched_tokens=100))
    assert sum(step.num_tokens for step in steps) + work.num_shareable_tokens == (
        work.num_input_tokens + work.num_output_tokens - len(work.requests)
    )
    assert sum(step.num_sampled for step in steps) == work.num_output_tokens
    assert max(step.num_tokens for step in steps) <= 100
    assert max(len(step.decode_contexts) + len(step.chunks) for step in steps) <= 7


def test_contexts_of_one_request() -> None:
    steps = list(plan_steps(Work("one", [Request([1] * 5, 3)]), 8, 4))
    assert steps == [Step([], [(0, 4)], 0), Step([], [(4, 1)], 1), Step([6], [], 1), Step([7], [], 1)]


def test_a_step_is_bound_by_bytes_or_by_products() -> None:
    costs = Costs(weight_bytes=1000, kv_bytes=10, layer_flops=100, head_flops=50, pair_flops=4)
    ceilings = Ceilings(10.0, 100.0)
    assert step_seconds(Step([7], [], 1), costs, ceilings) == 1000 / 10 + 7 * 10 / 10
    # 200 new tokens after 3: 20,050 flops of products bind; 200 * 3 + 20,100 pairs outweigh 203 tokens of cache
    assert step_seconds(Step([], [(3, 200)], 1), costs, ceilings) == 20_050 / 100 + 20_700 * 4 / 100
