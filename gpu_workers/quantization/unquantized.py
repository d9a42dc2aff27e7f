"""Linear layers whose weights are stored as they are used."""

from typing import Any

import torch
from torch import nn


class UnquantizedLinear:
    """One matrix [out_features, in_features] in the serving dtype, in the layout that the device multiplies best."""

    def create_weights(self, layer: nn.Module, in_features: int, out_features: int, build: Any) -> list[nn.Parameter]:
        weight: nn.Parameter = build.parameter(out_features, in_features)
        layer.weight = weight
        layer.operations = build.operations
        return [weight]

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        product: torch.Tensor = layer.operations.linear(x, layer.packed, bias)  # type: ignore[union-attr, operator]
        return product

    def apply_act_and_mul(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None, activation: str
    ) -> torch.Tensor:
        gated: torch.Tensor = layer.operations.linear_act_and_mul(x, layer.packed, bias, activation)  # type: ignore[union-attr, operator]
        return gated

    def finish(self, layer: nn.Module) -> None:
        """Packs the weight and lets the loaded copy go."""
        layer.packed = layer.operations.pack_weight(layer.weight.data)  # type: ignore[union-attr, operator]
        del layer.weight
