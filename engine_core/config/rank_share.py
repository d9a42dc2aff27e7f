"""What one of several tensor-parallel ranks has of a model.

Each rank has its share of heads and of the MLP's inner features; embeddings, output matrix and norms are whole on each,
as in `gpu_workers/layers/`.
"""

import msgspec

from engine_core.config.errors import ConfigError
from engine_core.config.model_config import ModelConfig

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
