"""The gated MLP of Llama and its descendants: down(silu(gate(x)) · up(x)), gate and up as one product."""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.linear import MergedColumnParallelLinear, RowParallelLinear


class GatedMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool, build: BuildContext) -> None:
        super().__init__()
        inner = intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(hidden_size, (inner, inner), bias, build)
        self.down_proj = RowParallelLinear(inner, hidden_size, bias, build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate_up_proj.silu_and_mul(x)
        x = self.down_proj(x)
        return x
