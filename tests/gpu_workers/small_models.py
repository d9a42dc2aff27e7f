"""Small random models of transformers, saved as checkpoints, and the configuration to serve them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine_core.config.engine_config import CacheConfig, EngineConfig, SchedulerConfig
from engine_core.config.model_config import load_model_config

SHAPE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {"sliding_window": 7, "query_pre_attn_scalar": 24}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 6},
    "one_kv_head_tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope_linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    "rope_llama3": {"rope_parameters": LLAMA3_ROPE},
    "qwen3_gqa": {"model_type": "qwen3"},
    "qwen3_one_kv_head_tied": {"model_type": "qwen3", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3_biases": {"model_type": "qwen3", "attention_bias": True},
    "qwen3_window": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "mistral_window": {"model_type": "mistral", "sliding_window": 10},
    "mistral_no_window": {"model_type": "mistral", "sliding_window": None},
    "gemma2": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma3": {
        "model_type": "gemma3_text",
        **GEMMA,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
}


def save_model(path: Path, max_shard_size: str = "1GB", model_type: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random model, written to `path` as a checkpoint."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    # Eager: the fused attention of the reference leaves soft caps out.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # made as zeros and ones, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


def engine_config(path: Path, **changes: Any) -> EngineConfig:
    """A small engine on the checkpoint in `path`."""
    scheduler: dict[str, Any] = {
        "max_num_seqs": 6,
        "max_num_batched_tokens": 24,
        "max_model_len": 128,
        "max_num_waiting": 8,
        "max_num_penalty_rows": 3,
    }
    dtype = changes.pop("dtype", "float32")
    cache: dict[str, Any] = {"block_size": 4, "num_blocks": 100, "num_host_blocks": 0}
    for part in (scheduler, cache):
        part.update({name: changes.pop(name) for name in list(changes) if name in part})
    return EngineConfig(
        model=load_model_config(path),
        cache=CacheConfig(**cache, dtype=dtype),
        scheduler=SchedulerConfig(**scheduler),
        dtype=dtype,
        **{"device": "cpu", **changes},
    )
