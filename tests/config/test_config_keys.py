"""Every key that config.json may have stands on a list: understood, without effect, or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import CONFIG_MAPPING

from engine_core.config.config_keys import NEUTRAL, UNDERSTOOD, WITHOUT_EFFECT, check_keys, unknown_keys
from engine_core.config.errors import ConfigError
from engine_core.config.hf_config import FAMILY_DEFAULTS, MODEL_TYPES, HfConfig
from engine_core.config.model_config import SUPPORTED_ARCHITECTURES, load_model_config

FILE = Path("/m/config.json")
OTHER_DECODERS = (
    "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "diffllama", "exaone4", "falcon_h1", "gemma", "glm",
    "glm4", "granite", "granite_swa", "helium", "hunyuan_v1_dense", "hyperclovax", "llama4_text", "ministral",
    "nemotron", "olmo", "olmo2", "olmo3", "persimmon", "phi", "phi3", "qwen2", "seed_oss", "smollm3", "stablelm",
    "starcoder2", "vaultgemma",
)  # fmt: skip
"""Whose keys can stay behind in the config.json of a model that was converted to a supported architecture."""
STRUCTURE = (
    "mamba_", "ssm_", "time_step", "projectors_bias", "moe", "router_", "interleave_moe", "intermediate_size_mlp",
    "num_experts_per_tok", "eod_token_id",
)  # fmt: skip
"""Beginnings of keys that go with tensors for which the supported architectures have no place: those are refused."""


def attributes(model_type: str) -> dict[str, Any]:
    """Names and defaults of all that a configuration of transformers holds or writes."""
    kind = CONFIG_MAPPING[model_type]
    return {**kind().to_dict(), **vars(kind()), **{field.name: field.default for field in dataclasses.fields(kind)}}


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_each_attribute_of_a_family_is_on_a_list(architecture: str) -> None:
    names = attributes(MODEL_TYPES[architecture])
    assert len(names) > 30
    lists = (UNDERSTOOD[architecture], WITHOUT_EFFECT, NEUTRAL)
    assert [name for name in names if not any(name in one for one in lists)] == []
    assert not WITHOUT_EFFECT & NEUTRAL.keys()
    assert not UNDERSTOOD[architecture] & WITHOUT_EFFECT


@pytest.mark.parametrize("model_type", OTHER_DECODERS)
def test_each_attribute_of_other_decoders_is_on_a_list(model_type: str) -> None:
    known = set().union(*UNDERSTOOD.values(), WITHOUT_EFFECT, NEUTRAL)
    names = [name for name in attributes(model_type) if not name.startswith(STRUCTURE)]
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    """But for shapes, which have to be said, and for tokens: an id of one vocabulary is any token of another."""
    kind = CONFIG_MAPPING[MODEL_TYPES[architecture]]
    wanted = {field.name: field.default for field in dataclasses.fields(kind)}
    compared = {}
    for field in msgspec.structs.fields(HfConfig):
        ours = FAMILY_DEFAULTS[architecture].get(field.name, field.default)
        is_said = ours is msgspec.NODEFAULT or field.name.endswith("_token_id")
        if field.name in UNDERSTOOD[architecture] & wanted.keys() and not is_said:
            compared[field.name] = ours
    assert compared == {name: wanted[name] for name in compared}
    assert {"num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"} <= compared.keys()


def test_keys_understood_are_read() -> None:
    read = {*HfConfig.__struct_fields__, "architectures", "model_type"}
    assert set().union(*UNDERSTOOD.values()) == read


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("key", NEUTRAL)
def test_a_value_that_changes_the_mathematics_is_refused(architecture: str, key: str) -> None:
    for neutral in (None, *NEUTRAL[key]):
        check_keys({key: neutral}, architecture, FILE)
        assert unknown_keys({key: neutral}, architecture) == ()
    if key in UNDERSTOOD[architecture]:
        check_keys({key: 0.3}, architecture, FILE)
        return
    with pytest.raises(ConfigError) as error:
        check_keys({key: 0.3}, architecture, FILE)
    would_do = [*map(json.dumps, NEUTRAL[key]), "no such key"]
    assert str(error.value) == (
        f"/m/config.json: {key} 0.3 changes what a model computes and is not supported for {architecture}; "
        f"{' or '.join(would_do)} would do."
    )


def test_keys_that_nobody_knows_are_named_and_not_refused() -> None:
    raw = {"vocab_size": 3, "a_note": "x", "unsloth_version": "1", "empty": None, "another": {}}
    check_keys(raw, "LlamaForCausalLM", FILE)
    assert unknown_keys(raw, "LlamaForCausalLM") == ("a_note", "another")


SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99, "num_attention_heads": 4}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama 3.1": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": [2, 3], "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "llama", "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": True,
    },
    "a small llama with notes": {
        "architectures": ["LlamaForCausalLM"], "is_llama_config": True, "max_position_embeddings": 2048,
        "model_type": "llama", "rope_interleaved": False, "rope_scaling": None, "rope_theta": 10000.0,
        "transformers.js_config": {"dtype": "q4"}, "_name_or_path": "x", "pad_token_id": -1,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "head_dim": 16, "hidden_act": "silu",
        "initializer_range": 0.02, "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "use_cache": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 16,
        "max_position_embeddings": 40960, "max_window_layers": 36,
        "model_type": "qwen3", "num_key_value_heads": 2, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True,
    },
    "gemma 2": {
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_key_value_heads": 2, "query_pre_attn_scalar": 256, "sliding_window": 4096, "pad_token_id": 0,
    },
    "gemma 3": {
        "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None, "cache_implementation": "hybrid",
        "final_logit_softcapping": None, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "use_cache": True,
    },
}  # fmt: skip
"""The keys of published models' files, with small shapes."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_understood_wholly(name: str, tmp_path: Path) -> None:
    raw = {**SHAPE, **PUBLISHED[name]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = load_model_config(tmp_path)
    assert model.architecture == raw["architectures"][0]
    assert unknown_keys(raw, model.architecture) == ()
