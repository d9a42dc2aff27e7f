"""Which part of a model a pipeline stage has. The first stage has the embedding as well, the last one the final norm
and the output matrix."""

import re
from dataclasses import dataclass
from itertools import pairwise

from engine_core.config.errors import ConfigError
from engine_core.config.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
_FINAL_NORM = "model.norm.weight"
LAYER = re.compile(r"model\.layers\.([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Stage:
    """The layers `first` to `last`, both included, of a model that has `num_layers`."""

    first: int
    last: int
    num_layers: int

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.last < self.num_layers, self

    @classmethod
    def whole(cls, num_layers: int) -> "Stage":
        return cls(0, num_layers - 1, num_layers)

    @property
    def layers(self) -> range:
        return range(self.first, self.last + 1)

    @property
    def has_embedding(self) -> bool:
        return self.first == 0

    @property
    def has_head(self) -> bool:
        """Whether the stage computes logits."""
        return self.last == self.num_layers - 1

    def loads(self, name: str, model: ModelConfig) -> bool:
        """Whether the stage needs a checkpoint's tensor. Names that no stage has pass: the loader refuses them."""
        if (match := LAYER.match(name)) is not None:
            layer = int(match.group(1))
            return layer in self.layers or layer >= self.num_layers
        if name in (EMBEDDING, OUTPUT) and model.tie_word_embeddings:
            return self.has_embedding or self.has_head
        if name == EMBEDDING:
            return self.has_embedding
        return self.has_head or name not in (OUTPUT, _FINAL_NORM)


def split_layers(num_layers: int, num_stages: int) -> tuple[Stage, ...]:
    """Stages whose lengths differ by at most one; the shorter ones come last, beside the output matrix.

    Raises `ConfigError` where a stage would have no layer.
    """
    if num_stages > num_layers:
        raise ConfigError(
            f"A model with {num_layers} layers cannot be split into {num_stages} stages, because each stage needs a "
            f"layer; {num_layers} stages would do."
        )
    length, num_longer = divmod(num_layers, num_stages)
    starts = [stage * length + min(stage, num_longer) for stage in range(num_stages + 1)]
    return tuple(Stage(first, end - 1, num_layers) for first, end in pairwise(starts))
