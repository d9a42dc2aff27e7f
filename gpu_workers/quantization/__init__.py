"""Quantization methods of linear layers: a registry, loaded on demand, and the interface of each method."""

import importlib
from typing import Any, Protocol

import torch
from torch import nn

from engine_core.config.errors import ConfigError

METHODS = {"unquantized": "gpu_workers.quantization.unquantized:UnquantizedLinear"}


class LinearMethod(Protocol):
    """How a linear layer stores its weight and multiplies with it."""

    def create_weights(self, layer: nn.Module, in_features: int, out_features: int, build: Any) -> list[nn.Parameter]:
        """Registers the layer's parameters and returns those that its weight loader fills shard by shard; the output
        features are dimension 0, the input features dimension 1."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x · weightᵀ + bias."""

    def apply_act_and_mul(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None, activation: str
    ) -> torch.Tensor:
        """act(gate) · up, where x · weightᵀ + bias = [gate, up]: one launch where the method has a kernel for it."""

    def finish(self, layer: nn.Module) -> None:
        """Called once when all weights are loaded, to repack them."""


def load_linear_method(name: str | None) -> LinearMethod:
    """The method that a model's config names; None is unquantized. Raises `ConfigError` for one that is not known."""
    target = METHODS.get(name or "unquantized")
    if target is None:
        raise ConfigError(f"The quantization method {name} is not supported; supported: {', '.join(METHODS)}.")
    module, _, attribute = target.partition(":")
    method: LinearMethod = getattr(importlib.import_module(module), attribute)()
    return method
