"""What a model is, read from its config.json alone: shapes, RoPE, special tokens. No weight is looked at.

Families that need fields of their own add them here, and to `hf_config.py` under the names of the files; what a model
*does* with them stands in gpu_workers/models/.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine_core.config.config_keys import check_keys
from engine_core.config.errors import ConfigError
from engine_core.config.hf_config import (
    FAMILY_DEFAULTS,
    MODEL_TYPES,
    HfConfig,
    HfGenerationConfig,
    find_architecture,
    find_sliding_layers,
)
from engine_core.config.rope import RopeConfig, read_rope, read_ropes_by_layer

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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
    sliding_rope: RopeConfig | None = None
    """Of the layers with a sliding window, where it is another one (Gemma 3)."""
    sliding_window: int = 0
    """Tokens that a query of `sliding_layers` sees, itself included; 0: there are no such layers."""
    sliding_layers: tuple[int, ...] = ()
    query_pre_attn_scalar: float | None = None
    """Scores are divided by its square root; None: by that of head_dim."""
    attn_logit_softcapping: float = 0.0
    """Scores s become c · tanh(s / c); 0: they stay (Gemma 2)."""
    final_logit_softcapping: float = 0.0
    """The same for the logits."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before RoPE (Qwen3, Gemma 3)."""
    post_norms: bool = False
    """RMSNorm of what attention and MLP put out, before it is added (Gemma 2 and 3)."""
    dtype: str | None = "bfloat16"
    """The dtype of the checkpoint; None: config.json does not say it."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Those of generation_config.json and config.json together; what serves a model adds the tokenizer's."""
    quantization: str | None = None


SUPPORTED_ARCHITECTURES = tuple(MODEL_TYPES)
"""Known without importing gpu_workers (and torch); a test keeps it equal to the registry there."""
_WITH_QK_NORM = ("Qwen3ForCausalLM", "Gemma3ForCausalLM")
_GEMMA = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
_SYNONYMS = {"half": "float16", "float": "float32", "swish": "silu"}
"""Other names that torch and transformers have for dtypes and activations."""

T = TypeVar("T")


def load_model_config(path: Path) -> ModelConfig:
    """Reads PATH/config.json and generation_config.json.

    Raises `ConfigError` with one sentence when a file is missing, is no JSON, lacks a field or names an architecture
    that is not supported.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no model folder {path}.")
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} holds an adapter (adapter_config.json), which is not supported; the merged model without that "
            f"file would do."
        )
    file = path / "config.json"
    raw = read_json_object(file)
    # Before anything else is looked at: another architecture need not have our fields.
    architecture = find_architecture(raw, file)
    check_keys(raw, architecture, file)
    generation_file = path / "generation_config.json"
    generation = HfGenerationConfig()
    if generation_file.exists():
        generation = _convert(read_json_object(generation_file), HfGenerationConfig, generation_file)
    raw = {**FAMILY_DEFAULTS[architecture], **raw}
    return _from_hf(_convert(raw, HfConfig, file), generation, architecture, path)


def _convert(raw: dict[str, Any], kind: type[T], file: Path) -> T:
    """Typed and within bounds, or a `ConfigError` that names the field. A null means that nothing was said."""
    try:
        return msgspec.convert({name: value for name, value in raw.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {str(error).replace(' - at `$.', ' at `')}.") from None


def _from_hf(hf: HfConfig, generation: HfGenerationConfig, architecture: str, path: Path) -> ModelConfig:
    """Our fields from theirs, refusing what we would compute wrongly."""
    file = path / "config.json"
    num_heads = hf.num_attention_heads
    num_kv_heads = hf.num_key_value_heads or num_heads
    if hf.quantization_config:
        method = str(hf.quantization_config.get("quant_method", "an unnamed method"))[:100]
        raise ConfigError(f"{path} is quantized with {method}, which is not supported.")
    if num_heads % num_kv_heads:
        raise ConfigError(f"{file}: {num_heads} attention heads do not divide into {num_kv_heads} KV heads.")
    if hf.head_dim is None and hf.hidden_size % num_heads:
        raise ConfigError(f"{file}: hidden_size {hf.hidden_size} does not divide into {num_heads} attention heads.")
    head_dim = hf.head_dim or hf.hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError(f"{file}: head_dim {head_dim} is odd, and RoPE turns pairs.")
    sliding_layers = find_sliding_layers(hf, architecture, file)
    if architecture == "Gemma3ForCausalLM":
        rope, sliding_rope = read_ropes_by_layer(hf, file)
    else:
        rope, sliding_rope = read_rope(hf, file), None
    return ModelConfig(
        architecture=architecture,
        path=str(path),
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_hidden_layers=hf.num_hidden_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=hf.max_position_embeddings,
        hidden_act=_hidden_act(hf, architecture, file),
        rms_norm_eps=hf.rms_norm_eps,
        rope=rope,
        sliding_rope=sliding_rope,
        sliding_window=(hf.sliding_window or 0) if sliding_layers else 0,
        sliding_layers=sliding_layers,
        query_pre_attn_scalar=hf.query_pre_attn_scalar,
        attn_logit_softcapping=hf.attn_logit_softcapping or 0.0,
        final_logit_softcapping=hf.final_logit_softcapping or 0.0,
        tie_word_embeddings=hf.tie_word_embeddings,
        attention_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        qk_norm=architecture in _WITH_QK_NORM,
        post_norms=architecture in _GEMMA,
        dtype=_dtype(hf, file),
        bos_token_id=next(iter(_token_ids(hf.bos_token_id)), None),
        eos_token_ids=_eos_token_ids(hf, generation, path),
    )


def _hidden_act(hf: HfConfig, architecture: str, file: Path) -> str:
    """Each family has one activation, under a name of its own."""
    if architecture in _GEMMA:
        key, wanted, given = "hidden_activation", "gelu_pytorch_tanh", hf.hidden_activation or "gelu_pytorch_tanh"
    else:
        key, wanted, given = "hidden_act", "silu", _SYNONYMS.get(hf.hidden_act, hf.hidden_act)
    if given != wanted:
        raise ConfigError(f"{file}: {key} {given[:40]!r} is not supported; supported: {wanted}.")
    return wanted


def _dtype(hf: HfConfig, file: Path) -> str | None:
    given = hf.dtype or hf.torch_dtype
    if given is None:
        return None
    given = given.removeprefix("torch.")
    dtype = _SYNONYMS.get(given, given)
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{file}: dtype {dtype[:40]!r} is not one of {', '.join(DTYPE_BYTES)}.")
    return dtype


def _eos_token_ids(hf: HfConfig, generation: HfGenerationConfig, path: Path) -> tuple[int, ...]:
    """All that either file names. transformers looks at generation_config.json and where that names none at
    config.json, so the first of them has to be right; an id of the other that no token has ends nothing."""
    named = {"generation_config.json": _token_ids(generation.eos_token_id), "config.json": _token_ids(hf.eos_token_id)}
    first = next((name for name, ids in named.items() if ids), "config.json")
    if (eos := max(named[first], default=0)) >= hf.vocab_size:
        raise ConfigError(
            f"{path / first}: eos_token_id {eos} is not in the vocabulary of {hf.vocab_size} tokens; "
            f"an id below {hf.vocab_size} would do."
        )
    return tuple(dict.fromkeys(eos for ids in named.values() for eos in ids if eos < hf.vocab_size))


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Some files give one token id, some a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises `ConfigError` with one sentence."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file.parent} is not a model folder: it has no {file.name}.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{file} must hold a JSON object.")
    return value
