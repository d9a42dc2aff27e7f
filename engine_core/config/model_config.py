"""What a model is, read from its config.json alone: shapes, RoPE, special tokens. No weight is looked at.

Families that need fields of their own add them here; what a model *does* with them stands in gpu_workers/models/.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from engine_core.config.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary embeddings: plain ("default"), "linear" scaling (Chen et al. 2023) or "llama3" (Llama 3.1's by-frequency
    interpolation)."""

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder-only transformer's shape in the field's words."""

    architecture: str
    """The name in config.json's `architectures`, the key of gpu_workers' registry."""
    path: str
    """The folder with config.json, the tokenizer and the weights."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before RoPE (Qwen3)."""
    dtype: str = "bfloat16"
    """The dtype of the checkpoint."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: str | None = None


SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
"""Known without importing gpu_workers (and torch); a test keeps it equal to the registry there."""


def load_model_config(path: Path) -> ModelConfig:
    """Reads PATH/config.json and generation_config.json.

    Raises `ConfigError` with one sentence when a file is missing, is no JSON, lacks a field or names an architecture
    that is not supported.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no model folder {path}.")
    raw = read_json_object(path / "config.json")
    architectures = raw.get("architectures") or []
    if not architectures:
        raise ConfigError(f"{path / 'config.json'} names no `architectures`.")
    architecture = next((name for name in architectures if name in SUPPORTED_ARCHITECTURES), None)
    if architecture is None:
        raise ConfigError(
            f"{path / 'config.json'} asks for the architecture {architectures[0]}, which is not supported; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise ConfigError(f"{path} is quantized with {method}, which is not supported.")
    return _from_hf(raw, architecture, path)


def _from_hf(raw: dict[str, Any], architecture: str, path: Path) -> ModelConfig:
    """The fields under their names in transformers' config files, of version 4 and 5."""
    config_file = path / "config.json"

    def required(name: str) -> int:
        value = raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{config_file}: `{name}` must be a positive whole number, not {value!r}.")
        return value

    num_heads = required("num_attention_heads")
    hidden_size = required("hidden_size")
    num_kv_heads = raw.get("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise ConfigError(f"{config_file}: {num_heads} attention heads do not divide into {num_kv_heads} KV heads.")
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{config_file}: dtype {dtype} is not one of {', '.join(DTYPE_BYTES)}.")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{config_file}: hidden_act {raw['hidden_act']} is not supported; supported: silu.")
    generation_file = path / "generation_config.json"
    generation = read_json_object(generation_file) if generation_file.exists() else {}
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        path=str(path),
        vocab_size=required("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=required("intermediate_size"),
        num_hidden_layers=required("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=raw.get("head_dim") or hidden_size // num_heads,
        max_position_embeddings=required("max_position_embeddings"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw, config_file),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        dtype=dtype,
        bos_token_id=_first(raw.get("bos_token_id")),
        eos_token_ids=tuple([eos] if isinstance(eos, int) else eos or ()),
    )


def _rope(raw: dict[str, Any], config_file: Path) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ("default", "linear", "llama3"):
        raise ConfigError(f"{config_file}: RoPE of type {rope_type} is not supported; default, linear and llama3 are.")
    theta = parameters.get("rope_theta", raw.get("rope_theta", 10000.0))
    known = {
        name: parameters[name] for name in RopeConfig.__struct_fields__ if name in parameters and name != "rope_type"
    }
    try:
        return msgspec.convert({"rope_type": rope_type, "theta": theta, **known}, RopeConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{config_file}: the RoPE parameters are malformed: {error}.") from error


def _first(value: Any) -> int | None:
    """A token id that some files give as a list."""
    if isinstance(value, list):
        return value[0] if value else None
    return value if isinstance(value, int) else None


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises `ConfigError` with one sentence."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file.parent} is not a model folder: it has no {file.name}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{file} must hold a JSON object.")
    return value
