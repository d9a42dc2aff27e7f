"""Which keys config.json may have: those that are understood, those without effect on what a model computes, and those
that change it and are refused unless their value leaves everything as it is.

The names are those of transformers' configuration classes, versions 4 and 5: of the families that are supported, and of
other decoders, whose keys can stay behind in a file that was converted. A key on none of the lists is not refused: such
keys are notes of the tools that wrote the file. `unknown_keys` finds them, and the start names them.
"""

import json
from pathlib import Path
from typing import Any

from engine_core.config.errors import ConfigError

_COMMON = {
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    # Whether they contradict each other depends on the family: `find_sliding_layers` checks them.
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "dtype",
    "torch_dtype",
    "bos_token_id",
    "eos_token_id",
    "quantization_config",
}
_GEMMA = {
    "attention_bias",
    "hidden_activation",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
}
UNDERSTOOD: dict[str, set[str]] = {
    "LlamaForCausalLM": {*_COMMON, "attention_bias", "hidden_act", "mlp_bias", "original_max_position_embeddings"},
    "MistralForCausalLM": {*_COMMON, "hidden_act", "original_max_position_embeddings"},
    "Qwen3ForCausalLM": {*_COMMON, "attention_bias", "hidden_act", "original_max_position_embeddings"},
    "Gemma2ForCausalLM": {*_COMMON, *_GEMMA, "attn_logit_softcapping", "original_max_position_embeddings"},
    "Gemma3ForCausalLM": {*_COMMON, *_GEMMA, "rope_local_base_freq", "sliding_window_pattern"},
}
"""Keys whose values reach the `ModelConfig` of an architecture, or are refused there."""

_GENERATION = {
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature", "top_k",
    "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids", "num_return_sequences",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff", "cache_implementation",
}  # fmt: skip
"""transformers 5 reads them from generation_config.json alone."""
_TOKENS = {
    "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id", "decoder_start_token_id",
    "tokenizer_class", "prefix",
}  # fmt: skip
_TRAINING = {
    "attention_dropout", "hidden_dropout", "embedding_dropout", "residual_dropout", "mlp_dropout", "resid_pdrop",
    "embd_pdrop", "emb_pdrop", "attn_pdrop", "classifier_dropout", "initializer_range", "initializer_factor",
    "initializer_cutoff_factor", "embedding_initializer_range", "pretraining_tp", "gradient_checkpointing",
    "router_aux_loss_coef", "output_router_logits",
}  # fmt: skip
_OUTPUTS = {
    "return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "use_cache",
    "_sliding_window_pattern", "chunk_size_feed_forward", "num_logits_to_keep", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_experts_implementation_internal", "_output_attentions", "_flash_attn_2_enabled",
    "is_decoder", "slow_but_exact", "reorder_and_upcast_attn", "init_device",
}  # fmt: skip
_NOTES = {
    "_name_or_path", "name_or_path", "_commit_hash", "_post_init_done", "ignore_keys_at_rope_validation",
    "transformers_version", "transformers.js_config", "auto_map", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "unsloth_version", "unsloth_fixed", "is_llama_config",
}  # fmt: skip
# auto_map names code of the checkpoint's own. Nothing here runs it; transformers does only where its user says so.
WITHOUT_EFFECT: frozenset[str] = frozenset({*_GENERATION, *_TOKENS, *_TRAINING, *_OUTPUTS, *_NOTES})
"""Keys that do not change what any of the architectures computes."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # RoPE
    "partial_rotary_factor": (1.0,),
    "rotary_pct": (1.0,),
    "rotary_dim": (),
    "rope_ratio": (1.0,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "original_max_position_embeddings": (),
    "layer_rope_theta": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "use_mrope": (False,),
    "mrope_section": (),
    "position_embedding_type": ("rope", "absolute"),
    "learned_pos_emb": (False,),
    "alibi": (False,),
    # Attention
    "attention_bias": (False,),
    "attention_out_bias": (False,),
    "use_qkv_bias": (False,),
    "qkv_bias": (False,),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "attention_multiplier": (),
    "attn_scale": (),
    "softmax_scale": (),
    "attn_temperature_tuning": (False,),
    "floor_scale": (),
    "attention_in_multiplier": (1.0,),
    "attention_out_multiplier": (1.0,),
    "key_multiplier": (1.0,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "clip_qkv": (),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "attention_chunk_size": (),
    "local_attention": (),
    "sliding_window_pattern": (),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "prefix_lm": (False,),
    "attn_config": ({},),
    "pruned_heads": ({},),
    "v_head_dim": (),
    "kv_lora_rank": (),
    "q_lora_rank": (),
    "qk_nope_head_dim": (),
    "qk_rope_head_dim": (),
    "num_kv_shared_layers": (0,),
    "lambda_std_dev": (),
    # MLP, norms, additions
    "hidden_act": ("gelu_pytorch_tanh",),
    "hidden_activation": ("silu", "swish"),
    "activation": (),
    "activation_function": (),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "bias": (False,),
    "no_bias": (True,),
    "mlp_multipliers": ([1.0, 1.0],),
    "swiglu_limit": (),
    "swiglu_alpha": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "layer_norm_eps": (),
    "layer_norm_epsilon": (),
    "norm_eps": (),
    "norm_epsilon": (),
    "norm_bias": (False,),
    "norm_type": ("rmsnorm", "rms_norm"),
    "use_post_norm": (False,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "residual_multiplier": (1.0,),
    "scale_depth": (),
    "per_layer_config": ({},),
    # Embeddings and logits
    "embedding_multiplier": (1.0,),
    "embedding_scale": (1.0,),
    "scale_emb": (1.0,),
    "scale_embedding": (False,),
    "dim_model_base": (),
    "mup_enabled": (False,),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "logits_soft_cap": (),
    "final_logit_softcapping": (),
    "lm_head_multiplier": (1.0,),
    "lm_head_bias": (False,),
    "decoder_bias": (False,),
    # Parts and files that are not there
    "text_config": ({},),
    "vision_config": ({},),
    "audio_config": ({},),
    "transformers_weights": ("model.safetensors",),
    "compression_config": ({},),
    "quantization": ({},),
}
"""Keys that change what a model computes, each with the values under which it does not; null is always one. A key that
an architecture understands is not looked up here."""


def check_keys(raw: dict[str, Any], architecture: str, file: Path) -> None:
    """Raises `ConfigError` for a key of config.json that changes what is computed and is not understood."""
    for key, value in raw.items():
        if value is None or key in UNDERSTOOD[architecture] or key not in NEUTRAL or value in NEUTRAL[key]:
            continue
        neutral = [_as_json(one) for one in NEUTRAL[key]]
        raise ConfigError(
            f"{file}: {key} {_as_json(value)} changes what a model computes and is not supported for {architecture}; "
            f"{' or '.join([*neutral, 'no such key'])} would do."
        )


def unknown_keys(raw: dict[str, Any], architecture: str) -> tuple[str, ...]:
    """Keys that are on none of the lists and say something."""
    known = UNDERSTOOD[architecture] | WITHOUT_EFFECT | NEUTRAL.keys()
    return tuple(key for key, value in raw.items() if value is not None and key not in known)


def _as_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
