"""Tiny model folders made on the spot: enough for everything that reads configs and headers."""

import json
import math
from pathlib import Path
from typing import Any

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}


def tiny_tensors(config: dict[str, Any], dtype: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    """Names, dtypes and shapes of a Llama's tensors for a config."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [vocab, hidden]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": [hidden],
            prefix + "post_attention_layernorm.weight": [hidden],
            prefix + "self_attn.q_proj.weight": [q_size, hidden],
            prefix + "self_attn.k_proj.weight": [kv_size, hidden],
            prefix + "self_attn.v_proj.weight": [kv_size, hidden],
            prefix + "self_attn.o_proj.weight": [hidden, q_size],
            prefix + "mlp.gate_proj.weight": [inner, hidden],
            prefix + "mlp.up_proj.weight": [inner, hidden],
            prefix + "mlp.down_proj.weight": [hidden, inner],
        }
    return {name: (dtype, shape) for name, shape in shapes.items()}


def safetensors_header(tensors: dict[str, tuple[str, list[int]]]) -> tuple[bytes, int]:
    """The first bytes of a file with these tensors, and how many bytes of data have to follow."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, offset


def write_safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A file of zeros with a real header; sparse, so that it may claim any size."""
    header, size = safetensors_header(tensors)
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + size)


def make_model_folder(folder: Path, stored_as: str = "BF16", **changes: Any) -> Path:
    """A Llama of the tiny config with some fields changed; None removes a field."""
    config = {name: value for name, value in {**TINY_CONFIG, **changes}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tiny_tensors(config, stored_as))
    return folder
