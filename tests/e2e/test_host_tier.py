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

NUM_PROMPTS = 24
NUM_ROUNDS = 2
MAX_TOKENS = 12
NUM_BLOCKS = 40
SETTINGS = {
    "num_gpu_blocks_override": NUM_BLOCKS,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "max_model_len": 160,
    "block_size": 8,
    "dtype": "float32",
}


async def serve(
    folder: Path, run_dir: Path, prompts: list[list[int]], device: str, kv_offload_gib: float
) -> tuple[list[list[list[int]]], dict[str, float]]:
    """The outputs of each round of the same prompts, and the engine's counters."""
    run_dir.mkdir()
    async with engine(folder, run_dir, **SETTINGS, device=device, kv_offload_gib=kv_offload_gib) as client:
        rounds = [
            await asyncio.gather(*(generate(client, p, temperature=0.0, max_tokens=MAX_TOKENS) for p in prompts))
            for _ in range(NUM_ROUNDS)
        ]
        metrics = await client.utility("metrics")
        status = await client.utility("status")
    assert status["free_blocks"] == status["total_blocks"] == NUM_BLOCKS
    return rounds, {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offload_kib", [1024, 128], ids=["roomy", "tight"])
def test_equal_tokens_with_and_without(offload_kib: int, device: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_small_model(folder, MODELS["gqa"])  # a block takes 8 KiB
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = mixed_prompts(NUM_PROMPTS, model.config.vocab_size, 100)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    plain, figures = asyncio.run(serve(folder, tmp_path / "plain", prompts, device, 0.0))
    assert "vllm:kv_offload_blocks_stored_total" not in figures
    tiered, figures = asyncio.run(serve(folder, tmp_path / "tiered", prompts, device, offload_kib / 2**20))
    stored, loaded = (figures[f"vllm:kv_offload_blocks_{what}_total"] for what in ("stored", "loaded"))
    ties = [count_ties(outputs, expected) for outputs in (*plain, *tiered)]
    print(f"{stored:.0f} blocks stored, {loaded:.0f} loaded; ties {ties}")
    assert sum(ties) <= len(ties)  # the tie rule forgives a few tokens, not a broken cache
    assert stored > 0
    assert loaded > 0
    assert figures["vllm:external_prefix_cache_hits_total"] == loaded * 8 <= figures["vllm:prefix_cache_hits_total"]
