"""Grouped-query self-attention over the paged KV cache, with its projections, RoPE and optional norms of the heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from engine_core.config.model_config import ModelConfig
from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.linear import QKVParallelLinear, RowParallelLinear
from gpu_workers.layers.norm import RMSNorm


class SelfAttention(nn.Module):
    """`layer` is its number in the model, which says what it sees; with a `qk_norm` each head of q and k passes one
    before RoPE."""

    def __init__(
        self, config: ModelConfig, layer: int, build: BuildContext, qk_norm: type[RMSNorm] | None = None
    ) -> None:
        super().__init__()
        head_dim, bias = config.head_dim, config.attention_bias
        self._group, self._place = build.layer_groups.place(layer)
        self._rope = int(config.sliding_rope is not None and layer in config.sliding_layers)
        self._scale = (config.query_pre_attn_scalar or head_dim) ** -0.5
        self._soft_cap = config.attn_logit_softcapping
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, head_dim, config.num_attention_heads, config.num_key_value_heads, bias, build
        )
        self.q_norm = qk_norm(head_dim, config.rms_norm_eps, build) if qk_norm else None
        self.k_norm = qk_norm(head_dim, config.rms_norm_eps, build) if qk_norm else None
        self._eps = config.rms_norm_eps
        self.o_proj = RowParallelLinear(config.num_attention_heads * head_dim, config.hidden_size, bias, build)

    def forward(self, x: torch.Tensor, rope_rows: Sequence[Any], context: ForwardContext) -> torch.Tensor:
        """x [num_tokens, hidden_size] to the same shape, or to the rows that the layer goes on with; `rope_rows` are
        those of each kind of layer."""
        x = self._attend(self.qkv_proj(x), rope_rows[self._rope], context)
        x = self.o_proj(context.choose(x))
        return x

    def _attend(self, qkv: torch.Tensor, rope_rows: Any, context: ForwardContext) -> torch.Tensor:
        """`qkv` [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] to [num_tokens, num_heads * head_dim]."""
        attention, place = context.attention[self._group], self._place
        q_norm = None if self.q_norm is None else self.q_norm.weight
        k_norm = None if self.k_norm is None else self.k_norm.weight
        query = attention.write(qkv, rope_rows, place, q_norm, k_norm, self._eps)
        return attention.attend(query, place, self._scale, self._soft_cap)
