"""The gated MLP of Llama and its descendants: down(act(gate(x)) · up(x)), gate and up as one product."""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.linear import MergedColumnParallelLinear, RowParallelLinear


class GatedMLP(nn.Module):
    """`hidden_act` as config.json names it: "silu", or "gelu_pytorch_tanh" (GELU by its approximation with tanh)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, bias: bool, build: BuildContext, hidden_act: str = "silu"
    ) -> None:
        super().__init__()
        assert hidden_act in ("silu", "gelu_pytorch_tanh"), hidden_act
        self._operations = build.operations
        self._is_silu = hidden_act == "silu"
        inner = intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(hidden_size, (inner, inner), bias, build)
        self.down_proj = RowParallelLinear(inner, hidden_size, bias, build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._is_silu:
            x = self.gate_up_proj.silu_and_mul(x)
        else:
            x = self._operations.gelu_and_mul(self.gate_up_proj(x), "tanh")
        x = self.down_proj(x)
        return x
