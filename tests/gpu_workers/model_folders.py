"""Folders of small random models that are written in unusual ways: how the model is built, and what is then done to its
folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from tests.gpu_workers.small_models import GEMMA, LLAMA3_ROPE

Edit = Callable[[Path], None]
ABSENT = object()
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


class Oddity(NamedTuple):
    """`model`: arguments of `save_model`. `counts`: whether the edit changes what the model computes."""

    model: dict[str, Any]
    edit: Edit
    counts: bool = True


def config(**changes: Any) -> Edit:
    """Sets keys of config.json; `ABSENT` removes one."""

    def edit(folder: Path) -> None:
        file = folder / "config.json"
        raw = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in raw.items() if value is not ABSENT}))

    return edit


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    """Writes the whole weight file anew."""

    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})

    return edit


def index(weight_map: dict[str, str]) -> Edit:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map})) and None


def shards_of_another_model(folder: Path) -> None:
    """A complete index beside the whole file, left by another training run."""
    others = {name: tensor * 1.5 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(others, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index(dict.fromkeys(others, "model-00001-of-00001.safetensors"))(folder)


def a_file_that_no_index_names(folder: Path) -> None:
    shutil.copy(next(iter(sorted(folder.glob("*-of-*.safetensors")))), folder / "consolidated.safetensors")


def stored_as(dtype: torch.dtype) -> Edit:
    return tensors(lambda all_tensors: {name: tensor.to(dtype) for name, tensor in all_tensors.items()})


def with_output(make: Callable[[torch.Tensor], torch.Tensor], keep_embedding: bool = True) -> Edit:
    """Stores an output matrix made of the embedding, beside it or instead of it."""

    def change(all_tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = {OUTPUT: make(all_tensors[EMBEDDING].clone())}
        return {name: t for name, t in all_tensors.items() if keep_embedding or name != EMBEDDING} | output

    return tensors(change)


def gemma3(**changes: Any) -> dict[str, Any]:
    return {"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 2, **changes}


TIED = {"tie_word_embeddings": True}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3_BARE = {name: value for name, value in LLAMA3_ROPE.items() if name != "original_max_position_embeddings"}
BY_LAYER = {
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
}

EQUAL: dict[str, Oddity] = {
    # RoPE
    "theta at the top level": Oddity({}, config(rope_parameters=ABSENT, rope_theta=200.0)),
    "theta in rope_parameters and beside it": Oddity(
        {}, config(rope_parameters={**PLAIN_ROPE, "rope_theta": 200.0}, rope_theta=5e5)
    ),
    "rope_scaling with `type`": Oddity(
        {}, config(rope_parameters=ABSENT, rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=10000.0)
    ),
    "rope_scaling beside plain rope_parameters": Oddity({}, config(rope_scaling=LINEAR)),
    "rope_scaling that says the same": Oddity(
        {}, config(rope_parameters={**LINEAR, "rope_theta": 10000.0}, rope_scaling={"type": "linear", "factor": 4})
    ),
    "rope_scaling null": Oddity({}, config(rope_parameters={**LINEAR, "rope_theta": 10000.0}, rope_scaling=None)),
    "rope_scaling empty": Oddity({}, config(rope_parameters={**LINEAR, "rope_theta": 10000.0}, rope_scaling={})),
    "rope_type before `type`": Oddity({}, config(rope_parameters={**LINEAR, "type": "default", "rope_theta": 300.0})),
    "llama3 without its original length": Oddity({}, config(rope_parameters=LLAMA3_BARE)),
    "llama3, original length at the top level": Oddity(
        {}, config(rope_parameters={**LLAMA3_ROPE, "rope_theta": 50.0}, original_max_position_embeddings=16)
    ),
    "linear, original length beside it": Oddity(
        {}, config(rope_scaling={**LINEAR, "original_max_position_embeddings": 64}, original_max_position_embeddings=64)
    ),
    "partial_rotary_factor 1": Oddity({}, config(partial_rotary_factor=1.0), counts=False),
    "gemma3, old names": Oddity(
        gemma3(), config(rope_parameters=ABSENT, rope_theta=200.0, rope_local_base_freq=50.0, rope_scaling=LINEAR)
    ),
    "gemma3, by layer": Oddity(gemma3(), config(rope_parameters=BY_LAYER)),
    "gemma3, by layer, and rope_scaling": Oddity(gemma3(), config(rope_parameters=BY_LAYER, rope_scaling=LINEAR)),
    "gemma3, one kind only": Oddity(
        gemma3(), config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 100.0}})
    ),
    "gemma3, by layer, thetas beside it": Oddity(
        gemma3(),
        config(
            rope_parameters={"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
            rope_theta=300.0,
            rope_local_base_freq=60.0,
        ),
    ),
    "gemma3, neither": Oddity(gemma3(), config(rope_parameters=ABSENT), counts=False),
    # Shapes and layers by their defaults
    "head_dim null": Oddity({"head_dim": 8}, config(head_dim=None), counts=False),
    "head_dim absent": Oddity({"head_dim": 8}, config(head_dim=ABSENT), counts=False),
    "KV heads null": Oddity({"num_key_value_heads": 6}, config(num_key_value_heads=None), counts=False),
    "qwen3's head_dim absent": Oddity(
        {"model_type": "qwen3", "head_dim": 128}, config(head_dim=ABSENT), counts=False
    ),
    "mistral's KV heads absent": Oddity(
        {"model_type": "mistral", "num_attention_heads": 8, "num_key_value_heads": 8},
        config(num_key_value_heads=ABSENT),
        counts=False,
    ),
    "gemma2's KV heads and head_dim absent": Oddity(
        {"model_type": "gemma2", **GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        config(num_key_value_heads=ABSENT, head_dim=ABSENT),
        counts=False,
    ),
    "gemma2's caps absent": Oddity(
        {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        config(attn_logit_softcapping=ABSENT, final_logit_softcapping=ABSENT),
    ),
    "gemma2's caps null": Oddity(
        {"model_type": "gemma2", **GEMMA}, config(attn_logit_softcapping=None, final_logit_softcapping=None)
    ),
    "gemma2's activation under the old name": Oddity(
        {"model_type": "gemma2", **GEMMA},
        config(hidden_activation=ABSENT, hidden_act="gelu_pytorch_tanh"),
        counts=False,
    ),
    "gemma3's pattern": Oddity(gemma3(), config(layer_types=ABSENT, sliding_window_pattern=3)),
    "gemma3's layers before its pattern": Oddity(gemma3(), config(sliding_window_pattern=3), counts=False),
    "mistral's window null": Oddity({"model_type": "mistral", "sliding_window": 7}, config(sliding_window=None)),
    "mistral's window absent": Oddity({"model_type": "mistral", "sliding_window": 7}, config(sliding_window=ABSENT)),
    "qwen3's window null": Oddity(
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        config(sliding_window=None, layer_types=ABSENT),
    ),
    "qwen3's window not used": Oddity(
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        config(use_sliding_window=False, layer_types=ABSENT),
    ),
    "a llama's window not used": Oddity({}, config(sliding_window=7, use_sliding_window=False), counts=False),
    "eps absent": Oddity({"rms_norm_eps": 0.5}, config(rms_norm_eps=ABSENT)),
    "swish": Oddity({}, config(hidden_act="swish"), counts=False),
    # Names
    "no architectures": Oddity({}, config(architectures=ABSENT), counts=False),
    "no model_type's own keys, and notes": Oddity(
        {},
        config(unsloth_version="2026.1", temperature=0.1, top_k=None, auto_map={"AutoConfig": "a.B"}, pretraining_tp=2),
        counts=False,
    ),
    "dtype under both names": Oddity({}, config(dtype="float32", torch_dtype="float16"), counts=False),
    "dtype half": Oddity({}, config(dtype=ABSENT, torch_dtype="half"), counts=False),
    "dtype absent": Oddity({}, both(config(dtype=ABSENT), stored_as(torch.float16))),
    # Output matrices
    "a tie that the weights deny": Oddity(TIED, with_output(lambda embedding: embedding.flip(0))),
    "a tie that the weights deny by dtype": Oddity(TIED, with_output(lambda embedding: embedding.half())),
    "a tie and a copy": Oddity(TIED, with_output(lambda embedding: embedding), counts=False),
    "a tie to the output matrix": Oddity(
        TIED, with_output(lambda embedding: embedding, keep_embedding=False), counts=False
    ),
    "gemma's tie not said": Oddity(gemma3(), config(tie_word_embeddings=ABSENT), counts=False),
    "gemma's tie, denied": Oddity(gemma3(), with_output(lambda embedding: embedding.flip(1))),
    # Files
    "a stale index": Oddity({}, index({OUTPUT: "model-00001-of-00002.safetensors"}), counts=False),
    "an index of other weights": Oddity({}, shards_of_another_model, counts=False),
    "a damaged index": Oddity({}, lambda folder: (folder / INDEX).write_text("{") and None, counts=False),
    "shards, and a file beside them": Oddity({"max_shard_size": "60KB"}, a_file_that_no_index_names, counts=False),
    "bfloat16": Oddity({}, stored_as(torch.bfloat16)),
}  # fmt: skip


def partial_rope(**changes: Any) -> Edit:
    return config(rope_parameters={**PLAIN_ROPE, **changes})


def drop(name: str) -> Edit:
    return tensors(lambda all_tensors: {key: tensor for key, tensor in all_tensors.items() if key != name})


def remove_last_shard(folder: Path) -> None:
    max(folder.glob("*-of-*.safetensors")).unlink()


def twice(folder: Path) -> None:
    first, second = sorted(folder.glob("*-of-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, {"format": "pt"})


CHANGES = "changes what a model computes and is not supported for"
CONTRADICT = "contradict each other"
MISTRAL, QWEN3 = {"model_type": "mistral", "sliding_window": 7}, {"model_type": "qwen3"}
REFUSED: dict[str, tuple[dict[str, Any], Edit, str]] = {
    "yarn": ({}, config(rope_scaling=YARN), "RoPE of type 'yarn' is not supported; default, linear and llama3 are."),
    "yarn by layer": (
        gemma3(), config(rope_parameters={"full_attention": YARN}), "RoPE of type 'yarn' is not supported"
    ),
    "dynamic": ({}, config(rope_scaling={"type": "dynamic", "factor": 2.0}), "RoPE of type 'dynamic' is not supported"),
    "rope dictionaries differ": (
        {}, config(rope_parameters={**LINEAR, "factor": 2.0}, rope_scaling=LINEAR),
        "rope_parameters and rope_scaling contradict each other; one of them would do.",
    ),
    "rope dictionaries differ in theta": (
        {}, config(rope_parameters={**PLAIN_ROPE, "rope_theta": 5e5}, rope_scaling=LINEAR), CONTRADICT
    ),
    "linear without factor": (
        {}, config(rope_scaling={"type": "linear"}), "rope_scaling of type 'linear' has no factor."
    ),
    "llama3 without factors": (
        {}, partial_rope(rope_type="llama3", factor=8.0), "rope_parameters of type 'llama3' has no low_freq_factor."
    ),
    "a factor without type": (
        {}, config(rope_scaling={"factor": 4.0}),
        "'factor' in rope_scaling is not understood with the type 'default'; rope_theta would do.",
    ),
    "mrope": (
        QWEN3, partial_rope(mrope_section=[2, 3, 3]),
        "'mrope_section' in rope_parameters is not understood with the type 'default'",
    ),
    "partial_rotary_factor": (
        {}, config(partial_rotary_factor=0.5),
        f"config.json: partial_rotary_factor 0.5 {CHANGES} LlamaForCausalLM; 1.0 or no such key would do.",
    ),
    "partial_rotary_factor inside": (
        {}, partial_rope(partial_rotary_factor=0.5),
        "rope_parameters.partial_rotary_factor 0.5 is not supported; 1.0 would do.",
    ),
    "by layer in a llama": (
        {}, config(rope_parameters=BY_LAYER),
        "rope_parameters.full_attention is for models whose kinds of layers differ in RoPE",
    ),
    "gemma3's rope_scaling with `type`": (
        gemma3(), config(rope_parameters=ABSENT, rope_scaling={"type": "linear", "factor": 4.0}),
        "'factor' in rope_parameters is not understood with the type 'default'; rope_theta would do.",
    ),
    "gemma3 without layers": (
        gemma3(), config(rope_parameters=PLAIN_ROPE),
        "'rope_type' in rope_parameters is not for one kind of layers; full_attention and sliding_attention would do.",
    ),
    "gemma3's original length": (
        gemma3(), config(original_max_position_embeddings=64),
        f"original_max_position_embeddings 64 {CHANGES} Gemma3ForCausalLM; no such key would do.",
    ),
    "gemma3's caps of scores": (
        gemma3(), config(attn_logit_softcapping=50.0), f"attn_logit_softcapping 50.0 {CHANGES} Gemma3ForCausalLM"
    ),
    "a llama's caps": ({}, config(final_logit_softcapping=30.0), f"final_logit_softcapping 30.0 {CHANGES} LlamaFor"),
    "a llama's scale": ({}, config(query_pre_attn_scalar=24), f"query_pre_attn_scalar 24 {CHANGES} LlamaForCausalLM"),
    "a llama's multiplier": ({}, config(embedding_multiplier=12), "; 1.0 or no such key would do."),
    "a llama's window": (
        {}, config(sliding_window=7),
        'sliding_window 7 is not supported for LlamaForCausalLM; "use_sliding_window": false would do, or neither key.',
    ),
    "a llama's layer types": (
        {}, config(layer_types=["sliding_attention"] * 3), "layer_types and sliding_window contradict each other"
    ),
    "a mistral's layer types": (
        MISTRAL, config(layer_types=["full_attention"] * 3),
        "layers of MistralForCausalLM are all of one kind, sliding_attention here.",
    ),
    "a mistral's window, not used": (MISTRAL, config(use_sliding_window=False), CONTRADICT),
    "a mistral's biases": (
        MISTRAL, config(attention_bias=True),
        f"attention_bias true {CHANGES} MistralForCausalLM; false or no such key would do.",
    ),
    "a qwen3's biases": (QWEN3, config(mlp_bias=True), f"mlp_bias true {CHANGES} Qwen3ForCausalLM"),
    "both directions": (QWEN3, config(is_causal=False), f"is_causal false {CHANGES} Qwen3ForCausalLM; true or no"),
    "another activation": (
        {"model_type": "gemma2", **GEMMA}, config(hidden_activation="gelu"), "hidden_activation 'gelu' is not supported"
    ),
    "an activation under another name": ({}, config(hidden_activation="gelu_pytorch_tanh"), '"silu" or "swish" or no'),
    "another family": (
        {}, config(model_type="mistral"),
        "'mistral' and the architecture LlamaForCausalLM contradict each other; model_type 'llama' would do.",
    ),
    "a text_config": ({}, config(text_config={"hidden_size": 96}), f"text_config {{\"hidden_size\": 96}} {CHANGES}"),
    "a dtype": ({}, config(dtype="float64"), "dtype 'float64' is not one of float32, float16, bfloat16."),
    "another weight file": ({}, config(transformers_weights="other.safetensors"), "transformers_weights \"other"),
    "an adapter": (
        {}, lambda folder: (folder / "adapter_config.json").write_text("{}") and None,
        "holds an adapter (adapter_config.json), which is not supported; the merged model without that file would do.",
    ),
    "weights as integers": (
        {}, stored_as(torch.int8), "is stored as I8, which is not supported; F16, BF16, F32 or F64 would do."
    ),
    "weights as FP8": ({}, stored_as(torch.float8_e4m3fn), "is stored as F8_E4M3, which is not supported"),
    "no output matrix": (
        {}, drop(OUTPUT),
        'no tensor lm_head.weight; "tie_word_embeddings": true in config.json would do if the embedding is used.',
    ),
    "a shard that is missing": (
        {"max_shard_size": "60KB"}, remove_last_shard,
        "which is missing; that file would do, or no index if others have the weights.",
    ),
    "a tensor in two shards": ({"max_shard_size": "60KB"}, twice, "is there a second time; "),
}  # fmt: skip
