"""Whether a checkpoint's tensors can belong to its config.json: the few shapes that every decoder-only model has.

What each layer needs beside them only the model's own file knows; its weight loaders check that.
"""

import re

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import ModelConfig

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.")


def check_checkpoint(model: ModelConfig, tensors: dict[str, TensorInfo]) -> None:
    """Raises `ConfigError` when embeddings, output matrix or layers are missing or of another shape."""
    wanted = (model.vocab_size, model.hidden_size)
    names = (_EMBEDDING,) if model.tie_word_embeddings else (_EMBEDDING, _OUTPUT)
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            raise ConfigError(f"The weights in {model.path} have no tensor {name}.")
        if tensor.shape != wanted:
            raise ConfigError(
                f"config.json and the weights in {model.path} do not belong together: {name} has the shape "
                f"{list(tensor.shape)} instead of {list(wanted)}."
            )
    layers = {match.group(1) for match in map(_LAYER.match, tensors) if match}
    missing = next((layer for layer in range(model.num_hidden_layers) if str(layer) not in layers), None)
    if missing is not None:
        raise ConfigError(
            f"The weights in {model.path} lack layer {missing}: config.json speaks of {model.num_hidden_layers}."
        )
