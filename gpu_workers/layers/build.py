"""What a layer must know of its surroundings to build itself; knows nothing of models."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gpu_workers.operations import Operations
from gpu_workers.quantization import LinearMethod


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Handed down through a model's constructors, so that no layer reads a global."""

    dtype: torch.dtype
    device: torch.device
    operations: Operations
    linear_method: LinearMethod
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


def set_loader(parameter: nn.Parameter, loader: Callable[..., None], shards: tuple[object, ...] = (None,)) -> None:
    """Gives a parameter its `weight_loader(parameter, tensor, shard)` and the shards that make it complete."""
    parameter.weight_loader = loader  # type: ignore[attr-defined]
    parameter.shards = shards  # type: ignore[attr-defined]


class ShapeMismatch(ValueError):
    """A checkpoint's tensor has another shape than the parameter it is meant for."""


def copy_checked(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copies and converts. Raises `ShapeMismatch` when the shapes differ: nothing is broadcast by accident."""
    if target.shape != source.shape:
        raise ShapeMismatch(f"has the shape {list(source.shape)} where the model needs {list(target.shape)}")
    target.copy_(source)


def load_whole(parameter: nn.Parameter, tensor: torch.Tensor, shard: object) -> None:
    """The weight loader of parameters that every rank keeps whole."""
    assert shard is None, shard
    copy_checked(parameter.data, tensor)
