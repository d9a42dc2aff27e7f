"""What a model is, read from its config.json alone: shapes, RoPE, special tokens. No weight is looked at.

Families that need fields of their own add them here, and to `hf_config.py` under the names of the files; what a model
*does* with them stands in gpu_workers/models/.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine_core.config.errors import ConfigError
from engine_core.config.hf_config import FAMILY_DEFAULTS, HfConfig, HfGenerationConfig, HfRope, find_sliding_layers

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
    dtype: str = "bfloat16"
    """The dtype of the checkpoint."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: str | None = None


SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
"""Known without importing gpu_workers (and torch); a test keeps it equal to the registry there."""
_WITH_QK_NORM = ("Qwen3ForCausalLM", "Gemma3ForCausalLM")
_GEMMA = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")

T = TypeVar("T")


def load_model_config(path: Path) -> ModelConfig:
    """Reads PATH/config.json and generation_config.json.

    Raises `ConfigError` with one sentence when a file is missing, is no JSON, lacks a field or names an architecture
    that is not supported.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no model folder {path}.")
    file = path / "config.json"
    raw = read_json_object(file)
    # Before anything else is looked at: another architecture need not have our fields.
    names = raw.get("architectures")
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{file} names no `architectures`.")
    architecture = next((name for name in names if name in SUPPORTED_ARCHITECTURES), None)
    if architecture is None:
        raise ConfigError(
            f"{file} asks for the architecture {str(names[0])[:100]!r}, which is not supported; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    generation_file = path / "generation_config.json"
    generation = HfGenerationConfig()
    if generation_file.exists():
        generation = _convert(read_json_object(generation_file), HfGenerationConfig, generation_file)
    raw = {**FAMILY_DEFAULTS.get(architecture, {}), **raw}
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
    dtype = (hf.dtype or hf.torch_dtype or "float32").removeprefix("torch.")
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
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{file}: dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}.")
    hidden_act = hf.hidden_activation or hf.hidden_act
    wanted_act = "gelu_pytorch_tanh" if architecture in _GEMMA else "silu"
    if hidden_act != wanted_act:
        raise ConfigError(f"{file}: hidden_act {hidden_act[:40]!r} is not supported; supported: {wanted_act}.")
    if hf.use_bidirectional_attention:
        raise ConfigError(f"{file}: use_bidirectional_attention is not supported: a token sees those before it only.")
    eos_token_ids = _token_ids(hf.eos_token_id if generation.eos_token_id is None else generation.eos_token_id)
    if (eos := max(eos_token_ids, default=0)) >= hf.vocab_size:
        source = file if generation.eos_token_id is None else path / "generation_config.json"
        raise ConfigError(f"{source}: eos_token_id {eos} is not in the vocabulary of {hf.vocab_size} tokens.")
    sliding_layers = find_sliding_layers(hf, architecture, file)
    rope, sliding_rope = _ropes(hf, architecture, file)
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
        hidden_act=hidden_act,
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
        dtype=dtype,
        bos_token_id=next(iter(_token_ids(hf.bos_token_id)), None),
        eos_token_ids=eos_token_ids,
    )


def _ropes(hf: HfConfig, architecture: str, file: Path) -> tuple[RopeConfig, RopeConfig | None]:
    """Of all layers, or of those that see all tokens and of those with a window."""
    parameters = hf.rope_parameters or hf.rope_scaling or HfRope()
    rope = _rope(parameters.full_attention or parameters, hf.rope_theta, file)
    if parameters.sliding_attention is not None:
        return rope, _rope(parameters.sliding_attention, hf.rope_local_base_freq, file)
    if architecture == "Gemma3ForCausalLM":
        return rope, RopeConfig(theta=hf.rope_local_base_freq)
    return rope, None


def _rope(parameters: HfRope, theta: float, file: Path) -> RopeConfig:
    rope_type = parameters.rope_type or parameters.type or "default"
    if rope_type not in ("default", "linear", "llama3"):
        raise ConfigError(f"{file}: RoPE of type {rope_type!r} is not supported; default, linear and llama3 are.")
    if rope_type == "llama3" and parameters.low_freq_factor >= parameters.high_freq_factor:
        raise ConfigError(f"{file}: RoPE's low_freq_factor must be less than its high_freq_factor.")
    return RopeConfig(
        rope_type=rope_type,
        theta=parameters.rope_theta or theta,
        factor=parameters.factor,
        low_freq_factor=parameters.low_freq_factor,
        high_freq_factor=parameters.high_freq_factor,
        original_max_position_embeddings=parameters.original_max_position_embeddings,
    )


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
