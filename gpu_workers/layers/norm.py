"""RMSNorm, alone or fused with the residual addition before it."""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext, load_whole, set_loader


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float, build: BuildContext) -> None:
        super().__init__()
        self.eps = eps
        self._operations = build.operations
        self.weight = build.parameter(size)
        set_loader(self.weight, load_whole)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._operations.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(residual + x), residual + x); before the first layer there is no residual, and the sum is x."""
        if residual is None:
            return self.forward(x), x
        return self._operations.add_rms_norm(x, residual, self.weight, self.eps)

    def gather_add(self, x: torch.Tensor, residual: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """norm(residual + x) of the rows `indices` [num_rows] alone."""
        return self._operations.gather_add_rms_norm(x, residual, indices, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose factors are 1 + weight (Gemma). The sum is made once, in float32: rounded to a shorter dtype it
    would not be what was trained."""

    def finish_loading(self) -> None:
        """Called once when the weight is there."""
        self.weight = nn.Parameter(1.0 + self.weight.float(), requires_grad=False)
