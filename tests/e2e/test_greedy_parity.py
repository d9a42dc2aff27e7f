"""Greedy tokens against transformers' `generate` in fp32: 64 prompts served together, in small chunks, preempted.

On a GPU where there is one, and on the CPU everywhere.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.e2e.engines import engine, generate, mixed_prompts

pytestmark = pytest.mark.slow

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TIE = 1e-4
"""A first divergence where the reference's two best logits are closer than this counts as equal."""
NUM_PROMPTS = 64
DEMO_MODEL = Path(__file__).parents[2] / "demo_model"

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 40,
    "query_pre_attn_scalar": 20,
}
MODELS = {
    "gqa": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "mha, tied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "biases, linear rope": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
    "head_dim, llama3 rope": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen3, gqa": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "qwen3, tied": {
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "mistral, window": {
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 56,
    },
    "gemma2": {
        "model_type": "gemma2",
        **GEMMA,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **GEMMA,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
}
NUM_BLOCKS = {"mistral, window": 22, "gemma2": 34, "gemma3": 60}
"""Few enough that requests are preempted, although windows let go of blocks, and as many as one request needs."""


def save_small_model(folder: Path, fields: dict[str, object]) -> None:
    """A random model, a Llama where `model_type` says nothing else, whose biases and norms are not plain."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{"model_type": "llama", **SMALL, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)


def reference(model: transformers.PreTrainedModel, prompt: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens and, at each, the gap between its two best logits."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(result.logits).topk(2).values
    return result.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def count_ties(ours: list[list[int]], theirs: list[tuple[list[int], list[float]]]) -> int:
    """How many outputs diverge first at a tie; fails on any other divergence."""
    ties = 0
    for index, (output, (expected, gaps)) in enumerate(zip(ours, theirs, strict=True)):
        if output == expected:
            continue
        first = next(i for i, (a, b) in enumerate(zip(output, expected, strict=False)) if a != b)
        assert gaps[first] < TIE, f"prompt {index} diverges at token {first}, where the gap is {gaps[first]:.6f}"
        ties += 1
    return ties


async def serve_all(
    folder: Path, run_dir: Path, prompts: list[list[int]], num_blocks: int, max_tokens: int, device: str, **changes: Any
) -> tuple:
    """All outputs, and how many preemptions and cache hits there were on the way."""
    arguments = {
        "num_gpu_blocks_override": num_blocks,
        "max_num_batched_tokens": 48,
        "max_num_seqs": 16,
        "max_model_len": 160,
        "block_size": 8,
        "dtype": "float32",
        "device": device,
        **changes,
    }
    async with engine(folder, run_dir, **arguments) as client:
        outputs = await asyncio.gather(
            *(generate(client, prompt, temperature=0.0, max_tokens=max_tokens) for prompt in prompts)
        )
        metrics = await client.utility("metrics")
        status = await client.utility("status")
    assert status["free_blocks"] == status["total_blocks"] == num_blocks
    figures = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}
    return outputs, figures["vllm:num_preemptions_total"], figures["vllm:prefix_cache_hits_total"]


def compare(folder: Path, run_dir: Path, max_tokens: int, device: str, num_blocks: int = 40) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    # The reference's fused attention leaves soft caps out.
    kind = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=kind
    ).eval()
    prompts = mixed_prompts(NUM_PROMPTS, model.config.vocab_size, 100)
    expected = [reference(model, prompt, max_tokens) for prompt in prompts]
    outputs, preemptions, hits = asyncio.run(serve_all(folder, run_dir, prompts, num_blocks, max_tokens, device))
    ties = count_ties(outputs, expected)
    print(f"{NUM_PROMPTS} prompts, {ties} ties, {preemptions:.0f} preemptions, {hits:.0f} cached tokens")
    assert preemptions > 0
    assert hits > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_small_random_models(name: str, device: str, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model", MODELS[name])
    compare(tmp_path / "model", tmp_path, 24, device, NUM_BLOCKS.get(name, 40))


WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "no cache, whole prompts": (400, {"enable_prefix_caching": False, "max_num_batched_tokens": 8192}),
    "cache, whole prompts": (400, {"max_num_batched_tokens": 8192}),
    "no cache, preempted": (40, {"enable_prefix_caching": False}),
    "cache, chunks that share steps": (400, {"max_num_batched_tokens": 24, "max_num_partial_prefills": 3}),
    "cache, preempted, by priority": (40, {"scheduling_policy": "priority"}),
    "cache, preempted, fair": (40, {"scheduling_policy": "fair"}),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]], list]:
    """A small model, prompts, and what transformers says."""
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, MODELS["gqa"])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = mixed_prompts(NUM_PROMPTS, model.config.vocab_size, 100)
    return folder, prompts, [reference(model, prompt, 24) for prompt in prompts]


@pytest.mark.parametrize(("num_blocks", "changes"), WAYS.values(), ids=WAYS.keys())
def test_no_way_to_schedule_changes_a_token(
    expected: tuple[Path, list[list[int]], list], num_blocks: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Prefix cache, chunks, preemption and policy decide when a token is computed, never which."""
    folder, prompts, answers = expected
    outputs, preemptions, hits = asyncio.run(serve_all(folder, tmp_path, prompts, num_blocks, 24, "cpu", **changes))
    print(f"{count_ties(outputs, answers)} ties, {preemptions:.0f} preemptions, {hits:.0f} cached tokens")
    assert (preemptions > 0) == (num_blocks == 40)
    assert (hits > 0) == changes.get("enable_prefix_caching", True)


@pytest.mark.parametrize("device", DEVICES)
def test_many_rows_with_one_beginning(device: str, tmp_path: Path) -> None:
    """So many that a GPU attends to the beginning once for all."""
    save_small_model(tmp_path / "model", {**MODELS["gqa"], "max_position_embeddings": 1024})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    beginning, *others = mixed_prompts(81, model.config.vocab_size, 480)
    beginning = (beginning * 480)[:480]
    prompts = [[*beginning, *own[:40]] for own in others]
    outputs, preemptions, hits = asyncio.run(
        serve_all(
            tmp_path / "model", tmp_path, [beginning, *prompts], 1200, 12, device,
            max_num_batched_tokens=1024, max_num_seqs=128, max_model_len=640,
        )
    )  # fmt: skip
    assert hits > 0
    assert preemptions == 0
    count_ties(outputs[1:], [reference(model, prompt, 12) for prompt in prompts])


@pytest.mark.parametrize("device", DEVICES)
def test_demo_model(device: str, tmp_path: Path) -> None:
    compare(DEMO_MODEL, tmp_path, 16, device)
