"""What a model itself takes, from its shape and its checkpoint's headers; what a worker needs around it stands in
`worker_memory.py`.

    KV bytes per token = 2 (keys and values) x layers x KV heads x head_dim x bytes per value

A block holds the tokens' keys and values of one group's layers (`layer_groups.py`): of all layers where there is one.
"""

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig

_PACKED_DTYPES = ("float32", "bfloat16")
"""As in `kernels/reference_linear.py`, which cannot be imported here."""


def weight_bytes(model: ModelConfig, tensors: dict[str, TensorInfo] | None, dtype_bytes: int) -> int:
    """The weights as loaded; `tensors` is None where they are made up. A tied model's stored copy of the output matrix
    is not loaded."""
    if tensors is None:
        return num_parameters(model) * dtype_bytes
    tied = {"lm_head.weight"} if model.tie_word_embeddings else set()
    return sum(tensor.bytes_at(dtype_bytes) for name, tensor in tensors.items() if name not in tied)


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
