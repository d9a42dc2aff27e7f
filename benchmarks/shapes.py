"""Models that benchmarks measure without having their weights: a config.json and a tokenizer that names every id, or
one of bytes and short strings for works that are about text.

`--load-format dummy` fills such a folder's model with random numbers. The shapes are those of the published models; the
tiny ones differ in nothing but size, and are for trials on a CPU.
"""

import itertools
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

MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""Mistral-7B-v0.1: all layers see a window."""

GEMMA2_9B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""Gemma-2-9B: every other layer sees a window."""

GEMMA3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""Gemma-3-1B: five layers of six see a window, which makes seven groups of four layers."""


def _tiny(config: dict[str, Any]) -> dict[str, Any]:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return {**config, **small, **heads, "max_position_embeddings": 8192}


SHAPES: dict[str, dict[str, Any]] = {
    "llama8b": LLAMA_8B,
    "qwen06b": QWEN_06B,
    "mistral7b": MISTRAL_7B,
    "gemma2-9b": GEMMA2_9B,
    "gemma3-1b": GEMMA3_1B,
    "tiny-llama8b": _tiny(LLAMA_8B),
    "tiny-qwen06b": _tiny(QWEN_06B),
}
END = "<|end|>"
"""The token that ends a text."""
TITLES = {"llama8b": "Llama-3.1-8B", "qwen06b": "Qwen3-0.6B"}
"""The names under which other engines' figures are kept (baselines.json)."""


def write_model_folder(shape: str, folder: Path, *, is_textual: bool = False) -> Path:
    """Makes `folder`/`shape` with all that a start needs but weights, and returns it. `is_textual`: its tokens are
    pieces of text, and the last one ends a text; else they are one word each, and nothing ends."""
    config = SHAPES[shape]
    size = config["vocab_size"]
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if is_textual:
        config = {**config, "eos_token_id": size - 1}
        settings["eos_token"] = END
    path = folder / shape
    path.mkdir(parents=True)
    tokenizer = _textual_tokenizer(size) if is_textual else _tokenizer(size)
    for name, content in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (path / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def _textual_tokenizer(vocab_size: int) -> dict[str, Any]:
    """Byte-level BPE: all bytes, then every string of two printable characters, of three and so on, as many as fit."""
    printable = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    # GPT-2's letters for bytes: printable ones stand for themselves, the others for characters from 256 on.
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    tokens = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    merges = []
    longest = printable
    while len(tokens) < vocab_size - 1:
        pairs = list(itertools.islice(itertools.product(longest, printable), vocab_size - 1 - len(tokens)))
        longest = [first + second for first, second in pairs]
        merges += pairs
        tokens += longest
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab_size - 1,
                "content": END,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate([*tokens, END])},
            "merges": merges,
        },
    }


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
