"""config.json as it is written: the fields that matter under their names in transformers 4 and 5, and what the families
mean by those that are not there. `model_config.py` turns them into ours; `config_keys.py` has all other names."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine_core.config.errors import ConfigError
from engine_core.config.rope import Count, HfRopes, PositiveFloat

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
}
"""The architectures and their `model_type`, by which transformers chooses."""
_GEMMA_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen3ForCausalLM": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    "Gemma2ForCausalLM": {**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "Gemma3ForCausalLM": {**_GEMMA_DEFAULTS, "rope_theta": 1e6, "max_position_embeddings": 131072},
}
"""What a family means by a field that is not there, as transformers' configuration classes do; a null is not that."""

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class HfConfig(HfRopes, kw_only=True):
    """The fields of config.json that matter, under their names in transformers 4 and 5."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    hidden_activation: str | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: PositiveFloat | None = None
    attn_logit_softcapping: PositiveFloat | None = None
    final_logit_softcapping: PositiveFloat | None = None
    sliding_window: Count | None = None
    sliding_window_pattern: Count = 6
    use_sliding_window: bool | None = None
    max_window_layers: Annotated[int, Meta(ge=0, lt=2**31)] = 28
    layer_types: list[str] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    quantization_config: dict[str, Any] | None = None


class HfGenerationConfig(msgspec.Struct, kw_only=True):
    """The fields of generation_config.json that matter."""

    eos_token_id: TokenId | list[TokenId] | None = None


def find_architecture(raw: dict[str, Any], file: Path) -> str:
    """Which of the supported architectures a config.json is for. transformers looks at `model_type` alone, other tools
    at `architectures`, so the two must not contradict each other. Raises `ConfigError`."""
    names, model_type = raw.get("architectures"), raw.get("model_type")
    by_type = next((name for name, kind in MODEL_TYPES.items() if kind == model_type), None)
    if names is None and by_type is not None:
        return by_type
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{file} names no `architectures`.")
    architecture = next((name for name in MODEL_TYPES if name in names), None)
    if architecture is None:
        raise ConfigError(
            f"{file} asks for the architecture {str(names[0])[:100]!r}, which is not supported; "
            f"supported: {', '.join(MODEL_TYPES)}."
        )
    if model_type is not None and by_type != architecture:
        raise ConfigError(
            f"{file}: model_type {str(model_type)[:40]!r} and the architecture {architecture} contradict each other; "
            f"model_type {MODEL_TYPES[architecture]!r} would do."
        )
    return architecture


def find_sliding_layers(hf: HfConfig, architecture: str, file: Path) -> tuple[int, ...]:
    """Which layers see a window only: what `layer_types` says, or else the rule of the family. Raises `ConfigError` for
    what the family does not mean."""
    layers = range(hf.num_hidden_layers)
    sliding: tuple[int, ...]
    if architecture == "LlamaForCausalLM":
        sliding = ()
        hides = hf.sliding_window is not None and hf.sliding_window < hf.max_position_embeddings
        if hf.use_sliding_window or (hf.use_sliding_window is None and hides):
            found = "use_sliding_window true" if hf.use_sliding_window else f"sliding_window {hf.sliding_window}"
            raise ConfigError(
                f'{file}: {found} is not supported for {architecture}; "use_sliding_window": false would do, or '
                f"neither key."
            )
    elif architecture == "MistralForCausalLM":
        sliding = tuple(layers) if hf.sliding_window else ()
        if hf.use_sliding_window is not None and hf.use_sliding_window != bool(sliding):
            raise ConfigError(f"{file}: sliding_window and use_sliding_window contradict each other; one would do.")
    elif architecture == "Qwen3ForCausalLM":
        has_window = hf.use_sliding_window and hf.sliding_window
        sliding = tuple(layers[hf.max_window_layers :]) if has_window else ()
    elif architecture == "Gemma2ForCausalLM":
        sliding = tuple(layers[::2])
    else:
        sliding = tuple(layer for layer in layers if (layer + 1) % hf.sliding_window_pattern)
    if hf.layer_types is not None:
        named = _named_sliding_layers(hf.layer_types, len(layers), file)
        # transformers does not look at the layer types of these two.
        if architecture in ("LlamaForCausalLM", "MistralForCausalLM") and named != sliding:
            raise ConfigError(
                f"{file}: layer_types and sliding_window contradict each other: layers of {architecture} are all of "
                f"one kind, {'sliding_attention' if sliding else 'full_attention'} here."
            )
        sliding = named
    if sliding and hf.sliding_window is None:
        raise ConfigError(f"{file} has layers that see a sliding window, but no sliding_window.")
    if sliding and architecture == "Qwen3ForCausalLM" and not hf.use_sliding_window:
        raise ConfigError(f"{file}: layer_types and use_sliding_window contradict each other.")
    return sliding


def _named_sliding_layers(layer_types: list[str], num_layers: int, file: Path) -> tuple[int, ...]:
    other = next((kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")), None)
    if other is not None:
        raise ConfigError(
            f"{file} has layers of the kind {other[:40]!r}, which are not supported; full_attention and "
            f"sliding_attention are."
        )
    if len(layer_types) != num_layers:
        raise ConfigError(f"{file}: layer_types names {len(layer_types)} layers instead of {num_layers}.")
    return tuple(layer for layer, kind in enumerate(layer_types) if kind == "sliding_attention")
