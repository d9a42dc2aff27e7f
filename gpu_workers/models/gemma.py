"""Gemma 2 and 3 (Gemma Team 2024, 2025): some layers see a sliding window only, and what attention and MLP put out is
normalized before it is added.

Norms multiply by 1 + weight, embeddings by sqrt(hidden_size). Gemma 2 caps scores and logits; Gemma 3 normalizes each
head of q and k instead, and its layers with a window have a RoPE of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from engine_core.config.model_config import ModelConfig
from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.attention import SelfAttention
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM
from gpu_workers.layers.mlp import GatedMLP
from gpu_workers.layers.norm import OffsetRMSNorm


class GemmaLayer(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))); each addition is made by the norm that follows it."""

    def __init__(self, config: ModelConfig, layer: int, build: BuildContext) -> None:
        super().__init__()

        def norm() -> OffsetRMSNorm:
            return OffsetRMSNorm(config.hidden_size, config.rms_norm_eps, build)

        self.input_layernorm = norm()
        self.self_attn = SelfAttention(config, layer, build, qk_norm=OffsetRMSNorm if config.qk_norm else None)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, False, build, config.hidden_act)
        self.post_feedforward_layernorm = norm()

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rope_rows: Sequence[Any], context: ForwardContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` and `residual` [num_tokens, hidden_size]; what is still to be added to the residual, and the residual."""
        x, residual = self.input_layernorm.add(x, residual)
        x = self.post_attention_layernorm(self.self_attn(x, rope_rows, context))
        x, residual = self.pre_feedforward_layernorm.add(x, context.choose(residual))
        return self.post_feedforward_layernorm(self.mlp(x)), residual


def build_gemma(config: ModelConfig, max_positions: int, build: BuildContext) -> CausalLM:
    """The model without weights; RoPE's tables have `max_positions` rows."""
    scale = config.hidden_size**0.5

    def make_layer(index: int) -> GemmaLayer:
        return GemmaLayer(config, index, build)

    return CausalLM(config, max_positions, make_layer, build, norm=OffsetRMSNorm, embedding_scale=scale)
