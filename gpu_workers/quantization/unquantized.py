"""Linear layers whose weights are stored as they are used."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class UnquantizedLinear:
    """One matrix [out_features, in_features] in the serving dtype."""

    def create_weights(self, layer: nn.Module, in_features: int, out_features: int, build: Any) -> list[nn.Parameter]:
        layer.weight = build.parameter(out_features, in_features)
        return [layer.weight]

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, layer.weight, bias)  # type: ignore[arg-type]

    def finish(self, layer: nn.Module) -> None:
        """Nothing to repack."""
