"""Greedy tokens with a KV cache that holds a few requests and a host tier that holds them all, in fp32.

What comes back from the host must be what was computed: outputs are compared with transformers' and with those of an
engine without the tier.
"""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers

from tests.e2e.engines import engine, generate, mixed_prompts
from tests.e2e.test_greedy_parity import DEVICES, MODELS, count_ties, reference, save_small_model

pytestmark = pytest.mark.slow

NUM_PROMPTS = 24
NUM_ROUNDS = 2
MAX_TOKENS = 12
NUM_BLOCKS = {"gqa": 40, "gemma3": 96}
"""Of models with one layer group and with four, three of them with a window."""
NUM_GROUPS = {"gqa": 1, "gemma3": 4}
SETTINGS = {
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "max_model_len": 160,
    "block_size": 8,
    "dtype": "float32",
}


async def serve(
    folder: Path, run_dir: Path, prompts: list[list[int]], device: str, num_blocks: int, kv_offload_gib: float
) -> tuple[list[list[list[int]]], dict[str, float]]:
    """The outputs of each round of the same prompts, and the engine's counters."""
    run_dir.mkdir()
    changes = {"device": device, "num_gpu_blocks_override": num_blocks, "kv_offload_gib": kv_offload_gib}
    async with engine(folder, run_dir, **SETTINGS, **changes) as client:
        rounds = [
            await asyncio.gather(*(generate(client, p, temperature=0.0, max_tokens=MAX_TOKENS) for p in prompts))
            for _ in range(NUM_ROUNDS)
        ]
        metrics = await client.utility("metrics")
        status = await client.utility("status")
    assert status["free_blocks"] == status["total_blocks"] == num_blocks
    return rounds, {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offload_kib", [1024, 128], ids=["roomy", "tight"])
@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_equal_tokens_with_and_without(name: str, offload_kib: int, device: str, tmp_path: Path) -> None:
    folder, num_blocks = tmp_path / "model", NUM_BLOCKS[name]
    save_small_model(folder, MODELS[name])  # eight tokens take 8 KiB in all groups
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = mixed_prompts(NUM_PROMPTS, model.config.vocab_size, 100)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    plain, figures = asyncio.run(serve(folder, tmp_path / "plain", prompts, device, num_blocks, 0.0))
    assert "vllm:kv_offload_blocks_stored_total" not in figures
    tiered, figures = asyncio.run(serve(folder, tmp_path / "tiered", prompts, device, num_blocks, offload_kib / 2**20))
    stored, loaded = (figures[f"vllm:kv_offload_blocks_{what}_total"] for what in ("stored", "loaded"))
    ties = [count_ties(outputs, expected) for outputs in (*plain, *tiered)]
    print(f"{stored:.0f} blocks stored, {loaded:.0f} loaded; ties {ties}")
    assert sum(ties) <= len(ties)  # the tie rule forgives a few tokens, not a broken cache
    assert stored > 0
    assert loaded > 0
    num_tokens = loaded * 8 // NUM_GROUPS[name]
    assert figures["vllm:external_prefix_cache_hits_total"] == num_tokens <= figures["vllm:prefix_cache_hits_total"]
