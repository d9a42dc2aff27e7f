"""What a model itself takes, from its shape and its checkpoint's headers; what a worker needs around it stands in
`worker_memory.py`."""

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig
from engine_core.config.rank_share import share_of_rank
from engine_core.config.stages import EMBEDDING, OUTPUT

_PACKED_DTYPES = ("float32", "bfloat16")
"""Those that the CPU's operations pack; a test compares."""
_SPLIT_WHOLLY = ("q_proj", "gate_proj", "up_proj")
_SPLIT_BY_KV_HEADS = ("k_proj", "v_proj")
_SPLIT_INPUTS = ("o_proj", "down_proj")
"""Their biases are whole on each rank."""


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
