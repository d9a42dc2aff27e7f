"""Attention over the paged KV cache; the projections around it belong to the model."""

from typing import Any

import torch
from torch import nn

from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.build import BuildContext


class Attention(nn.Module):
    """Rotates, writes the step's keys and values, attends. `layer` is its place in the cache."""

    def __init__(self, layer: int, head_dim: int, build: BuildContext) -> None:
        super().__init__()
        self._operations = build.operations
        self._layer = layer
        self._scale = head_dim**-0.5

    def forward(self, qkv: torch.Tensor, rope_rows: Any, context: ForwardContext) -> torch.Tensor:
        """`qkv` [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] to [num_tokens, num_heads * head_dim]."""
        query = self._operations.rope_write_kv(qkv, rope_rows, context.kv_cache, self._layer, context.attention)
        return self._operations.paged_attention(
            query, context.kv_cache, self._layer, context.attention, self._scale, context.workspace
        )
