"""config.json as it is written: the fields that matter under their names in transformers 4 and 5, and what the families
mean by those that are not there. `model_config.py` turns them into ours."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine_core.config.errors import ConfigError

_GEMMA_DEFAULTS: dict[str, Any] = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": 4096},
    "Qwen3ForCausalLM": {"sliding_window": 4096},
    "Gemma2ForCausalLM": {**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "Gemma3ForCausalLM": {**_GEMMA_DEFAULTS, "rope_theta": 1e6, "max_position_embeddings": 131072},
}
"""What a family means by a field that is not there; a null is not that."""


Count = Annotated[int, Meta(ge=1, lt=2**31)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e30)]


class HfRope(msgspec.Struct, kw_only=True):
    """`rope_parameters` (transformers 5) or `rope_scaling` (4); fields of other types than ours are ignored."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: PositiveFloat | None = None
    factor: PositiveFloat = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Count = 8192
    full_attention: "HfRope | None" = None
    sliding_attention: "HfRope | None" = None
    """In their place: one for each kind of layer (Gemma 3 in transformers 5)."""


class HfConfig(msgspec.Struct, kw_only=True):
    """The fields of config.json that matter, under their names in transformers 4 and 5."""

    architectures: Annotated[list[str], Meta(min_length=1)]
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    hidden_activation: str | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    rope_parameters: HfRope | None = None
    rope_scaling: HfRope | None = None
    rope_theta: PositiveFloat = 10000.0
    rope_local_base_freq: PositiveFloat = 10000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: PositiveFloat | None = None
    attn_logit_softcapping: PositiveFloat | None = None
    final_logit_softcapping: PositiveFloat | None = None
    use_bidirectional_attention: bool = False
    sliding_window: Count | None = None
    sliding_window_pattern: Count = 6
    use_sliding_window: bool = False
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


def find_sliding_layers(hf: HfConfig, architecture: str, file: Path) -> tuple[int, ...]:
    """Which layers see a window only: what `layer_types` says, or else the rule of the family. Raises `ConfigError` for
    what the family does not mean."""
    layers = range(hf.num_hidden_layers)
    if hf.layer_types is not None and architecture != "MistralForCausalLM":
        other = next((kind for kind in hf.layer_types if kind not in ("full_attention", "sliding_attention")), None)
        if other is not None:
            raise ConfigError(
                f"{file} has layers of the kind {other[:40]!r}, which are not supported; full_attention and "
                f"sliding_attention are."
            )
        if len(hf.layer_types) != len(layers):
            raise ConfigError(f"{file}: layer_types names {len(hf.layer_types)} layers instead of {len(layers)}.")
        sliding = tuple(layer for layer in layers if hf.layer_types[layer] == "sliding_attention")
    elif architecture == "MistralForCausalLM":
        sliding = tuple(layers) if hf.sliding_window else ()
    elif architecture == "Gemma2ForCausalLM":
        sliding = tuple(layers[::2])
    elif architecture == "Gemma3ForCausalLM":
        sliding = tuple(layer for layer in layers if (layer + 1) % hf.sliding_window_pattern)
    else:
        sliding = tuple(layers[hf.max_window_layers :]) if hf.use_sliding_window else ()
    if sliding and architecture == "LlamaForCausalLM":
        raise ConfigError(f"{file} has layers of the kind 'sliding_attention', which this architecture does not have.")
    if sliding and hf.sliding_window is None:
        raise ConfigError(f"{file} has layers that see a sliding window, but no sliding_window.")
    if sliding and architecture == "Qwen3ForCausalLM" and not hf.use_sliding_window:
        raise ConfigError(f"{file}: layer_types and use_sliding_window contradict each other.")
    return sliding
