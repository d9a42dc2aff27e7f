"""Llama (Touvron et al. 2023; Dubey et al. 2024): a pre-norm decoder with RoPE, grouped-query attention, gated MLP."""

from typing import Any, ClassVar

import torch
from torch import nn

from engine_core.config.model_config import ModelConfig
from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.attention import Attention
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.embedding import Embedding, LMHead
from gpu_workers.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from gpu_workers.layers.norm import RMSNorm
from gpu_workers.layers.rotary import RotaryEmbedding


class LlamaAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, build: BuildContext) -> None:
        super().__init__()
        q_size = config.num_attention_heads * config.head_dim
        heads = (config.head_dim, config.num_attention_heads, config.num_key_value_heads)
        self.qkv_proj = QKVParallelLinear(config.hidden_size, *heads, config.attention_bias, build)
        self.attention = Attention(layer, config.head_dim, build)
        self.o_proj = RowParallelLinear(q_size, config.hidden_size, config.attention_bias, build)

    def forward(self, x: torch.Tensor, rope_rows: Any, context: ForwardContext) -> torch.Tensor:
        x = self.attention(self.qkv_proj(x), rope_rows, context)
        x = self.o_proj(x)
        return x


class LlamaMLP(nn.Module):
    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        inner = config.intermediate_size
        self._operations = build.operations
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, (inner, inner), config.mlp_bias, build)
        self.down_proj = RowParallelLinear(inner, config.hidden_size, config.mlp_bias, build)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._operations.silu_and_mul(self.gate_up_proj(x))
        x = self.down_proj(x)
        return x


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, build: BuildContext) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)
        self.self_attn = LlamaAttention(config, layer, build)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)
        self.mlp = LlamaMLP(config, build)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rope_rows: Any, context: ForwardContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rope_rows, context)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class LlamaModel(nn.Module):
    def __init__(self, config: ModelConfig, max_positions: int, build: BuildContext) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build)
        self.rotary = RotaryEmbedding(config.head_dim, max_positions, config.rope, build)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i, build) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)

    def forward(self, context: ForwardContext) -> torch.Tensor:
        """Hidden states [num_sampled, hidden_size] of the tokens whose logits are wanted."""
        rope_rows = self.rotary(context.positions)
        x: torch.Tensor = self.embed_tokens(context.input_ids)
        residual: torch.Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rope_rows, context)
        assert residual is not None
        return self.norm.add(x[context.logits_indices], residual[context.logits_indices])[0]


class LlamaForCausalLM(nn.Module):
    """Parameters are named as in the checkpoints, but for the fused ones."""

    FUSED: ClassVar[dict[str, tuple[str, object]]] = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }
    """A checkpoint's module: the module here and the shard of it."""

    def __init__(self, config: ModelConfig, max_positions: int, build: BuildContext) -> None:
        super().__init__()
        self.model = LlamaModel(config, max_positions, build)
        tied = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.vocab_size, config.hidden_size, build, tied)

    def forward(self, context: ForwardContext) -> torch.Tensor:
        """Logits [num_sampled, vocab_size]."""
        logits: torch.Tensor = self.lm_head(self.model(context))
        return logits
