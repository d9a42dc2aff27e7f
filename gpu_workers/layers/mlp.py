"""The gated MLP of Llama and its descendants: down(act(gate(x)) · up(x)), gate and up as one product."""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.linear import MergedColumnParallelLinear, RowParallelLinear

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""The kernels' names of what config.json may name; the second is GELU by its approximation with tanh."""


class GatedMLP(nn.Module):
    """`hidden_act` as config.json names it."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, bias: bool, build: BuildContext, hidden_act: str = "silu"
    ) -> None:
        super().__init__()
        self._activation = _ACTIVATIONS[hidden_act]
        inner = intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(hidden_size, (inner, inner), bias, build)
        self.down_proj = RowParallelLinear(inner, hidden_size, bias, build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate_up_proj.act_and_mul(x, self._activation)
        x = self.down_proj(x)
        return x
