"""What a model itself takes, from its shape and its checkpoint's headers; what a worker needs around it stands in
`worker_memory.py`.

    KV bytes per token = 2 (keys and values) x layers x KV heads x head_dim x bytes per value

A block holds the tokens' keys and values of one group's layers (`layer_groups.py`): of all layers where there is one.

With tensor parallelism each rank has its share of heads and of the MLP's inner features; embeddings, output matrix and
norms are whole on each, as in `gpu_workers/layers/`.
"""

import msgspec

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.consistency import EMBEDDING, OUTPUT
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig

_PACKED_DTYPES = ("float32", "bfloat16")
"""As in `kernels/reference_linear.py`, which cannot be imported here."""
_SPLIT_WHOLLY = ("q_proj", "gate_proj", "up_proj")
_SPLIT_BY_KV_HEADS = ("k_proj", "v_proj")
_SPLIT_INPUTS = ("o_proj", "down_proj")
"""Their biases are whole on each rank."""
_MOST_RANKS_PROPOSED = 64


def share_of_rank(model: ModelConfig, num_ranks: int) -> ModelConfig:
    """What one of `num_ranks` tensor-parallel ranks has of a model. Where KV heads are fewer than ranks, several ranks
    keep the same one. Raises `ConfigError` for a number that does not divide the model, and names those that do."""
    if not _divides(model, num_ranks):
        fitting = map(str, fitting_rank_counts(model, _MOST_RANKS_PROPOSED))
        raise ConfigError(
            f"--tensor-parallel-size {num_ranks} does not divide {model.num_attention_heads} attention heads, "
            f"{model.num_key_value_heads} KV heads and {model.intermediate_size} inner features of the MLP; "
            f"{' or '.join(fitting)} would do."
        )
    return msgspec.structs.replace(
        model,
        num_attention_heads=model.num_attention_heads // num_ranks,
        num_key_value_heads=max(1, model.num_key_value_heads // num_ranks),
        intermediate_size=model.intermediate_size // num_ranks,
    )


def fitting_rank_counts(model: ModelConfig, most: int) -> list[int]:
    """Tensor parallel sizes up to `most` that divide the model."""
    return [size for size in range(1, most + 1) if _divides(model, size)]


def _divides(model: ModelConfig, num_ranks: int) -> bool:
    kv_heads = model.num_key_value_heads
    shares_kv_heads = kv_heads % num_ranks == 0 or num_ranks % kv_heads == 0
    return shares_kv_heads and not (model.num_attention_heads % num_ranks or model.intermediate_size % num_ranks)


def weight_bytes(
    model: ModelConfig, tensors: dict[str, TensorInfo] | None, dtype_bytes: int, num_ranks: int = 1
) -> int:
    """One rank's weights as loaded; `tensors` is None where they are made up. A tied model's stored copy of the output
    matrix is not loaded."""
    if tensors is None:
        return num_parameters(share_of_rank(model, num_ranks)) * dtype_bytes
    not_loaded = {OUTPUT} if model.tie_word_embeddings and EMBEDDING in tensors else set()
    return sum(
        tensor.bytes_at(dtype_bytes) // _num_parts(model, name, num_ranks)
        for name, tensor in tensors.items()
        if name not in not_loaded
    )


def _num_parts(model: ModelConfig, name: str, num_ranks: int) -> int:
    """Into how many parts ranks divide a tensor of the checkpoint."""
    *_, layer, kind = ["", *name.rsplit(".", 2)]
    if layer in _SPLIT_WHOLLY or (layer in _SPLIT_INPUTS and kind == "weight"):
        return num_ranks
    return min(num_ranks, model.num_key_value_heads) if layer in _SPLIT_BY_KV_HEADS else 1


def packed_bytes(model: ModelConfig, dtype: str, device: str) -> int:
    """On a CPU linear layers keep their weights in the library's own layout only. A tied matrix, which the embedding
    reads as well, is the one that is there twice; in a dtype that is not packed it is not. A GPU packs nothing."""
    if device != "cpu" or not model.tie_word_embeddings or dtype not in _PACKED_DTYPES:
        return 0
    return model.vocab_size * model.hidden_size * DTYPE_BYTES[dtype]


def num_parameters(model: ModelConfig) -> int:
    """Parameters of a dense decoder-only transformer of this shape."""
    q_size, kv_size = head_sizes(model)
    attention = model.hidden_size * (q_size + 2 * kv_size) + q_size * model.hidden_size
    if model.attention_bias:
        attention += q_size + 2 * kv_size + model.hidden_size
    mlp = 3 * model.hidden_size * model.intermediate_size
    if model.mlp_bias:
        mlp += 2 * model.intermediate_size + model.hidden_size
    norms = (4 if model.post_norms else 2) * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return embeddings + model.num_hidden_layers * (attention + mlp + norms) + model.hidden_size


def head_sizes(model: ModelConfig) -> tuple[int, int]:
    """Features of one token's queries and of its keys."""
    return model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim


def kv_bytes_per_token(model: ModelConfig, dtype_bytes: int, num_layers: int) -> int:
    return 2 * num_layers * model.num_key_value_heads * model.head_dim * dtype_bytes
