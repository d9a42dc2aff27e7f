"""On a GPU: logits in bf16 are about as close to those in fp32 as transformers' own."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import RingRunner
from tests.gpu_workers.small_models import engine_config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="Triton's interpreter multiplies bf16 operands wrongly"
)

SHAPE: dict[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.06,
}
ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
MAX_RATIO = 1.2
"""Of our error to transformers' own."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_error_against_fp32(architecture: str, tmp_path: Path) -> None:
    make_config, make_model = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    make_model(make_config(**SHAPE)).to(torch.bfloat16).save_pretrained(tmp_path)
    lengths = {"max_model_len": 512, "max_num_batched_tokens": 256, "max_num_seqs": 6, "block_size": 16}
    config = engine_config(tmp_path, device="cuda", dtype="bfloat16", num_blocks=256, **lengths)
    runner = RingRunner(config)
    driver = Driver(config, runner)
    rng = random.Random(0)
    requests = [
        Request([rng.randrange(1, 2000) for _ in range(length)], 12, row)
        for row, length in enumerate((1, 17, 64, 200, 333, 120))
    ]
    ours: dict[int, list[torch.Tensor]] = {request.row: [] for request in requests}
    while live := [request for request in requests if len(request.output) < request.max_tokens]:
        counts = [len(request.output) for request in requests]
        order = sorted(live, key=lambda request: len(request.prompt) - request.num_computed > 0)
        driver.step(order)
        scheduled = [request for request in order if driver.result.num_sampled[order.index(request)]]
        for request in scheduled:
            if len(request.output) > counts[request.row]:
                ours[request.row].append(runner.runner._logits[order.index(request)].clone())
    runner.close()

    # Loaded anew: casting a model also rounds its table of RoPE frequencies.
    wanted, rounded = (
        torch.cat([reference(make_model.from_pretrained(tmp_path, dtype=dtype).to("cuda"), r) for r in requests])
        for dtype in (torch.float32, torch.bfloat16)
    )
    made = torch.cat([torch.stack(ours[request.row]) for request in requests])
    our_error, their_error = (float((x - wanted).norm() / wanted.norm()) for x in (made, rounded))
    print(f"{architecture}: relative error of logits {our_error:.5f}, transformers' own {their_error:.5f}")
    assert our_error <= MAX_RATIO * their_error


def reference(model: torch.nn.Module, request: Request) -> torch.Tensor:
    """Logits [num_outputs, vocab_size] behind each generated token, in the model's dtype."""
    ids = torch.tensor([request.prompt + request.output], device="cuda")
    logits: torch.Tensor = model(ids).logits[0]
    return logits[len(request.prompt) - 1 : -1].float()
