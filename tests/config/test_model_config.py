"""config.json and generation_config.json: what is understood, and one sentence for what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.config.config_keys import NEUTRAL
from engine_core.config.errors import ConfigError
from engine_core.config.hf_config import HfConfig
from engine_core.config.model_config import load_model_config
from engine_core.config.rope import LAYER_KINDS, HfRope, RopeConfig
from tests.config.models import TINY_CONFIG, make_model_folder


def test_the_fields_of_a_llama(tmp_path: Path) -> None:
    model = load_model_config(make_model_folder(tmp_path))
    assert (model.vocab_size, model.hidden_size, model.num_hidden_layers) == (96, 32, 2)
    assert (model.num_attention_heads, model.num_key_value_heads, model.head_dim) == (4, 2, 8)
    assert (model.dtype, model.eos_token_ids, model.rms_norm_eps) == ("bfloat16", (2,), 1e-5)


def test_qwen3_has_norms_of_heads_and_its_own_head_dim(tmp_path: Path) -> None:
    fields = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 1}
    for kinds in (None, ["full_attention"] * 2):
        folder = make_model_folder(
            tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=16, layer_types=kinds, **fields
        )
        model = load_model_config(folder)
        assert (model.architecture, model.qk_norm, model.head_dim) == ("Qwen3ForCausalLM", True, 16)
    assert not load_model_config(make_model_folder(tmp_path / "llama")).qk_norm
    # From layer 2 on, and there are two: no layer of it sees a window.
    folder = make_model_folder(tmp_path, **QWEN3, sliding_window=8, use_sliding_window=True, max_window_layers=2)
    assert load_model_config(folder).sliding_layers == ()


QWEN3, MISTRAL = {"architectures": ["Qwen3ForCausalLM"]}, {"architectures": ["MistralForCausalLM"]}
GEMMA = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 7}
GEMMA2, GEMMA3 = ({"architectures": [f"Gemma{n}ForCausalLM"], **GEMMA} for n in (2, 3))


@pytest.mark.parametrize(
    ("fields", "window", "layers"),
    [
        ({**MISTRAL, "sliding_window": 40}, 40, (0, 1)),
        ({**MISTRAL, "sliding_window": "null"}, 0, ()),
        (MISTRAL, 4096, (0, 1)),
        ({**QWEN3, "sliding_window": 40, "use_sliding_window": False}, 0, ()),
        ({**QWEN3, "sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1}, 40, (1,)),
        ({**QWEN3, "sliding_window": 40, "layer_types": ["full_attention"] * 2}, 0, ()),
        (GEMMA2, 4096, (0, 2, 4, 6)),
        (GEMMA3, 4096, (0, 1, 2, 3, 4, 6)),
        ({**GEMMA3, "sliding_window": 512, "sliding_window_pattern": 3}, 512, (0, 1, 3, 4, 6)),
        ({**GEMMA3, "layer_types": ["full_attention"] * 6 + ["sliding_attention"]}, 4096, (6,)),
    ],
)
def test_which_layers_see_a_window(
    tmp_path: Path, fields: dict[str, Any], window: int, layers: tuple[int, ...]
) -> None:
    folder = make_model_folder(tmp_path)
    config = {**TINY_CONFIG, **{name: None if value == "null" else value for name, value in fields.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model_config(folder)
    assert (model.sliding_window, model.sliding_layers) == (window, layers)


def test_what_gemma_means_by_fields_that_are_not_there(tmp_path: Path) -> None:
    fields = {**TINY_CONFIG, **GEMMA2}
    del fields["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = load_model_config(tmp_path)
    assert (model.head_dim, model.query_pre_attn_scalar, model.hidden_act) == (256, 256, "gelu_pytorch_tanh")
    assert (model.attn_logit_softcapping, model.final_logit_softcapping) == (50.0, 30.0)
    assert model.tie_word_embeddings
    assert model.post_norms
    assert model.sliding_rope is None
    (tmp_path / "config.json").write_text(json.dumps({**fields, "attn_logit_softcapping": None}))
    assert load_model_config(tmp_path).attn_logit_softcapping == 0.0


def test_both_ropes_of_gemma3(tmp_path: Path) -> None:
    """As transformers 4 writes them, and as 5 does."""
    old = {"rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    both = {
        "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    for fields in (old, {"rope_parameters": both}):
        (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, **GEMMA3, **fields}))
        model = load_model_config(tmp_path)
        assert model.rope == RopeConfig(rope_type="linear", theta=2e6, factor=8.0)
        assert model.sliding_rope == RopeConfig(theta=2e4)
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, **GEMMA3}))
    model = load_model_config(tmp_path)
    assert (model.rope.theta, model.sliding_rope) == (1e6, RopeConfig(theta=1e4))
    assert model.qk_norm


def test_transformers_5_writes_other_names(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    model = load_model_config(
        make_model_folder(tmp_path, torch_dtype=None, **{"dtype": "float16", "rope_parameters": rope})
    )
    assert model.dtype == "float16"
    assert model.rope == RopeConfig(rope_type="llama3", theta=5e5, factor=8.0, original_max_position_embeddings=64)


def test_transformers_4_rope_scaling(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 4.0}
    model = load_model_config(make_model_folder(tmp_path, rope_theta=1e6, rope_scaling=scaling))
    assert model.rope == RopeConfig(rope_type="linear", theta=1e6, factor=4.0)


def test_eos_is_what_either_file_names(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    for generation, wanted in (("[5, 6]", (5, 6, 2)), ("2", (2,)), ("[]", (2,)), ("null", (2,))):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {generation}}}')
        assert load_model_config(folder).eos_token_ids == wanted
    make_model_folder(tmp_path, eos_token_id=None)
    assert load_model_config(folder).eos_token_ids == ()


def test_eos_is_a_token_of_the_vocabulary(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, eos_token_id=95)
    assert load_model_config(folder).eos_token_ids == (95,)
    make_model_folder(tmp_path, eos_token_id=[2, 96])
    with pytest.raises(ConfigError, match=r"/config\.json: eos_token_id 96 is not in the vocabulary of 96 tokens"):
        load_model_config(folder)
    # transformers looks at this one first; in the other an id that no token has ends nothing.
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert load_model_config(folder).eos_token_ids == (3, 2)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1000}')
    with pytest.raises(ConfigError, match=r"/generation_config\.json: eos_token_id 1000 is not in the vocabulary"):
        load_model_config(folder)


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError) as error:
        load_model_config(tmp_path)
    assert str(error.value) == f"{tmp_path}/config.json cannot be read: Is a directory."


def test_no_folder_no_file_no_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no model folder"):
        load_model_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_model_config(tmp_path)
    for content in (b"{", b"\xff\xfe", b"[1]", b"", b"[" * 100000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            load_model_config(tmp_path)


BAD_FIELDS: list[dict[str, Any]] = [
    {"architectures": None},
    {"architectures": ["MambaForCausalLM"]},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [7]},
    {"vocab_size": None},
    {"vocab_size": "96"},
    {"hidden_size": 0},
    {"num_hidden_layers": -1},
    {"num_attention_heads": True},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": "two"},
    {"head_dim": -8},
    {"head_dim": "8"},
    {"hidden_size": 33},
    {"rms_norm_eps": "small"},
    {"torch_dtype": "int8"},
    {"hidden_act": "gelu"},
    {"eos_token_id": "</s>"},
    {"eos_token_id": [1.5]},
    {"eos_token_id": -1},
    {"bos_token_id": {}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": "two"}},
    {"rope_scaling": {"rope_type": "linear", "factor": 0}},
    {"rope_scaling": 3},
    {"rope_theta": "big"},
    {"rope_theta": -1},
    {"tie_word_embeddings": "no"},
    {"quantization_config": {"quant_method": "gptq"}},
    {"quantization_config": 4},
    {"max_position_embeddings": None},
    {"use_sliding_window": True, "max_window_layers": 1},
    {"use_sliding_window": "yes"},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": "full_attention"},
    {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    {**QWEN3, "layer_types": ["chunked_attention"] * 2},
    {**QWEN3, "layer_types": ["full_attention"]},
    {**QWEN3, "layer_types": ["sliding_attention"] * 2, "sliding_window": 8},
    {**MISTRAL, "sliding_window": 0},
    {**GEMMA2, "hidden_activation": "silu"},
    {**GEMMA3, "use_bidirectional_attention": True},
    {**GEMMA3, "sliding_window_pattern": 0},
]


@pytest.mark.parametrize("changes", BAD_FIELDS, ids=str)
def test_fields_that_cannot_be_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = {name: value for name, value in {**TINY_CONFIG, **changes}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as error:
        load_model_config(tmp_path)
    assert "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


rope_dictionaries = st.dictionaries(st.sampled_from([*HfRope.__struct_fields__, *LAYER_KINDS, "x\n"]), json_values)


@pytest.mark.slow
@given(
    family=st.sampled_from([{}, QWEN3, MISTRAL, GEMMA2, GEMMA3]),
    name=st.sampled_from([*TINY_CONFIG, *HfConfig.__struct_fields__, "model_type", *NEUTRAL]),
    value=json_values | rope_dictionaries,
)
@settings(max_examples=600)
def test_any_value_is_understood_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, family: dict[str, Any], name: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_text(json.dumps({**TINY_CONFIG, **family, name: value}))
    refusal = ""
    try:
        load_model_config(folder)
    except ConfigError as error:
        refusal = str(error)
    assert "\n" not in refusal
