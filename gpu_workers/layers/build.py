"""What a layer must know of its surroundings to build itself; knows nothing of models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from engine_core.config.layer_groups import LayerGroups
from engine_core.config.stages import Stage
from gpu_workers.operations import Operations
from gpu_workers.quantization import LinearMethod


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Handed down through a model's constructors, so that no layer reads a global."""

    dtype: torch.dtype
    device: torch.device
    operations: Operations
    linear_method: LinearMethod
    layer_groups: LayerGroups
    stage: Stage
    tp_rank: int = 0
    tp_size: int = 1

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialized parameter; weights never need gradients here."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def share(self, size: int, what: str) -> int:
        """This rank's part of `size`, which must divide evenly."""
        if size % self.tp_size:
            raise ValueError(f"{size} {what} cannot be split over {self.tp_size} ranks.")
        return size // self.tp_size


class Placement(NamedTuple):
    """What of a checkpoint's tensor goes where: two views of one shape, whose dtypes may differ."""

    target: torch.Tensor
    source: torch.Tensor


WeightLoader = Callable[[nn.Parameter, torch.Tensor, Any], Placement]
"""From a parameter, a checkpoint's tensor and the shard that it is to where its values go. Copies nothing itself: how
they get there is up to the device (`gpu_workers/weight_copier.py`)."""


def set_loader(parameter: nn.Parameter, loader: WeightLoader, shards: tuple[object, ...] = (None,)) -> None:
    """Gives a parameter its `weight_loader` and the shards that make it complete."""
    parameter.weight_loader = loader  # type: ignore[attr-defined]
    parameter.shards = shards  # type: ignore[attr-defined]


class ShapeMismatch(ValueError):
    """A checkpoint's tensor has another shape than the parameter it is meant for."""


def place(target: torch.Tensor, source: torch.Tensor) -> Placement:
    """Raises `ShapeMismatch` when the shapes differ: nothing is broadcast by accident."""
    if target.shape != source.shape:
        raise ShapeMismatch(f"has the shape {list(source.shape)} where the model needs {list(target.shape)}")
    return Placement(target, source)


def load_whole(parameter: nn.Parameter, tensor: torch.Tensor, shard: object) -> Placement:
    """The weight loader of parameters that every rank keeps whole."""
    assert shard is None, shard
    return place(parameter.data, tensor)
