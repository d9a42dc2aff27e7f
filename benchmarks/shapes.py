"""Models that benchmarks measure without having their weights: a config.json and a tokenizer that names every id.

`--load-format dummy` fills such a folder's model with random numbers. The shapes are those of the published models; the
tiny ones differ in nothing but size, and are for trials on a CPU.
"""

import json
from pathlib import Path
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""Llama-3.1-8B."""

QWEN_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""Qwen3-0.6B."""


def _tiny(config: dict[str, Any]) -> dict[str, Any]:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return {**config, **small, **heads, "max_position_embeddings": 8192}


SHAPES: dict[str, dict[str, Any]] = {
    "llama8b": LLAMA_8B,
    "qwen06b": QWEN_06B,
    "tiny-llama8b": _tiny(LLAMA_8B),
    "tiny-qwen06b": _tiny(QWEN_06B),
}
TITLES = {"llama8b": "Llama-3.1-8B", "qwen06b": "Qwen3-0.6B"}
"""The names under which other engines' figures are kept (baselines.json)."""


def write_model_folder(shape: str, folder: Path) -> Path:
    """Makes `folder`/`shape` with all that a start needs but weights, and returns it."""
    config = SHAPES[shape]
    path = folder / shape
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (path / "tokenizer.json").write_text(json.dumps(_tokenizer(config["vocab_size"])), encoding="utf-8")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return path


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """One word per id: a streamed token without a text would wait for the next one, and events could not be counted."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {f"t{token_id} ": token_id for token_id in range(vocab_size)},
            "unk_token": "t0 ",
        },
    }
