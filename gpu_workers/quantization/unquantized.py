"""Linear layers whose weights are stored as they are used."""

from typing import Any, cast

import torch
from torch import nn

from gpu_workers.operations import Operations


class UnquantizedLinear:
    """One matrix [out_features, in_features] in the serving dtype, in the layout that the device multiplies best."""

    def create_weights(self, layer: nn.Module, in_features: int, out_features: int, build: Any) -> list[nn.Parameter]:
        weight: nn.Parameter = build.parameter(out_features, in_features)
        layer.weight = weight
        layer.operations = build.operations
        return [weight]

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return _operations(layer).linear(x, layer.packed, bias)

    def apply_act_and_mul(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None, activation: str
    ) -> torch.Tensor:
        return _operations(layer).linear_act_and_mul(x, layer.packed, bias, activation)

    def finish(self, layer: nn.Module) -> None:
        """Packs the weight and lets the loaded copy go."""
        layer.packed = _operations(layer).pack_weight(cast(nn.Parameter, layer.weight).data)
        del layer.weight


def _operations(layer: nn.Module) -> Operations:
    """As `create_weights` left them: a module's attributes have no types."""
    return cast(Operations, layer.operations)
