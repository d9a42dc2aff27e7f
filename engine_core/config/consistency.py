"""Whether a checkpoint's tensors can belong to its config.json: the few shapes that every decoder-only model has. And
what only the tensors tell: their dtype, and whether the output matrix is the embedding.

What each layer needs beside them only the model's own file knows; its weight loaders check that.
"""

import msgspec

from engine_core.config.checkpoint import CONVERTED, TensorInfo, hold_the_same
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import ModelConfig
from engine_core.config.stages import EMBEDDING, LAYER, OUTPUT

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def with_checkpoint(model: ModelConfig, tensors: dict[str, TensorInfo]) -> ModelConfig:
    """The model as its tensors make it, by the rules of transformers.

    Where config.json ties the output matrix to the embedding and the checkpoint has both, other bytes than the
    embedding's count. Where config.json names no dtype, the first tensor of floats does. Raises `ConfigError` when the
    tensors cannot belong to the model.
    """
    if model.tie_word_embeddings and EMBEDDING in tensors and OUTPUT in tensors:
        is_tied = hold_the_same(tensors[EMBEDDING], tensors[OUTPUT])
        model = msgspec.structs.replace(model, tie_word_embeddings=is_tied)
    if model.dtype is None:
        dtype = next((_FLOATS[tensor.dtype] for tensor in tensors.values() if tensor.dtype in _FLOATS), None)
        model = msgspec.structs.replace(model, dtype=dtype)
    _check(model, tensors)
    return model


def _check(model: ModelConfig, tensors: dict[str, TensorInfo]) -> None:
    """Weights are floats, and embeddings, output matrix and layers are there in the shapes that config.json says."""
    for name, stored in tensors.items():
        # As numbers of another kind a weight needs scales, and config.json names no quantization that has them.
        if stored.dtype not in CONVERTED:
            raise ConfigError(
                f"{stored.file}: {name[:200]!r} is stored as {stored.dtype}, which is not supported; "
                f"{', '.join(CONVERTED[:-1])} or {CONVERTED[-1]} would do."
            )
    wanted = (model.vocab_size, model.hidden_size)
    names: tuple[str, ...] = (EMBEDDING, OUTPUT)
    if model.tie_word_embeddings:  # either will do
        names = (OUTPUT,) if OUTPUT in tensors and EMBEDDING not in tensors else (EMBEDDING,)
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            hint = '; "tie_word_embeddings": true in config.json would do if the embedding is used' * (name == OUTPUT)
            raise ConfigError(f"The weights in {model.path} have no tensor {name}{hint}.")
        if tensor.shape != wanted:
            raise ConfigError(
                f"config.json and the weights in {model.path} do not belong together: {name} has the shape "
                f"{list(tensor.shape)} instead of {list(wanted)}."
            )
    layers = {match.group(1) for match in map(LAYER.match, tensors) if match}
    missing = next((layer for layer in range(model.num_hidden_layers) if str(layer) not in layers), None)
    if missing is not None:
        raise ConfigError(
            f"The weights in {model.path} lack layer {missing}: config.json speaks of {model.num_hidden_layers}."
        )
