"""What pre-norm decoders have in common: the layer's two residual additions, the stack of layers, embedding and logits.

A model hands in the attention and the MLP of each layer and states nothing else. Parameters are named as in the
checkpoints, but for the fused ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from engine_core.config.model_config import ModelConfig
from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.embedding import Embedding, LMHead
from gpu_workers.layers.norm import RMSNorm
from gpu_workers.layers.rotary import RotaryEmbedding

_WORTH_CHOOSING = 2
"""With so many tokens for each one whose logits are wanted, the last layer goes on with those alone: a gathering costs
three launches."""


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); each addition is made by the norm that follows it."""

    def __init__(self, config: ModelConfig, self_attn: nn.Module, mlp: nn.Module, build: BuildContext) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, build)
        self.mlp = mlp

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rope_rows: Sequence[Any], context: ForwardContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` and `residual` [num_tokens, hidden_size]; what is still to be added to the residual, and the residual."""
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rope_rows, context)
        x, residual = self.post_attention_layernorm.add(x, context.choose(residual))
        return self.mlp(x), residual


class Decoder(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        max_positions: int,
        layers: Iterable[nn.Module],
        build: BuildContext,
        norm: type[RMSNorm],
        embedding_scale: float,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, build, embedding_scale)
        ropes = (config.rope,) if config.sliding_rope is None else (config.rope, config.sliding_rope)
        self.rotary = nn.ModuleList(RotaryEmbedding(config.head_dim, max_positions, rope, build) for rope in ropes)
        self.layers = nn.ModuleList(layers)
        self.norm = norm(config.hidden_size, config.rms_norm_eps, build)

    def forward(self, context: ForwardContext) -> torch.Tensor:
        """Hidden states [num_sampled, hidden_size] of the tokens whose logits are wanted."""
        rope_rows = [rotary(context.positions) for rotary in self.rotary]
        x: torch.Tensor = self.embed_tokens(context.input_ids)
        residual: torch.Tensor | None = None
        *layers, last = self.layers
        for layer in layers:
            x, residual = layer(x, residual, rope_rows, context)
        indices = context.logits_indices
        if len(indices) * _WORTH_CHOOSING > len(context.input_ids):
            x, residual = last(x, residual, rope_rows, context)
            return self.norm.gather_add(x, residual, indices)
        # Keys and values are there; nothing reads what the last layer makes of the other tokens.
        x, residual = last(x, residual, rope_rows, replace(context, wanted=indices.clamp(min=0)))
        normed, _ = self.norm.add(x, residual)
        return normed


class CausalLM(nn.Module):
    """A decoder and the projection to logits, which a model may tie to its embedding; `norm` is the last one's kind."""

    FUSED: ClassVar[dict[str, tuple[str, object]]] = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }
    """A checkpoint's module: the module here and the shard of it."""

    def __init__(
        self,
        config: ModelConfig,
        max_positions: int,
        layers: Iterable[nn.Module],
        build: BuildContext,
        norm: type[RMSNorm] = RMSNorm,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._soft_cap = config.final_logit_softcapping
        self.model = Decoder(config, max_positions, layers, build, norm, embedding_scale)
        tied = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.vocab_size, config.hidden_size, build, tied)

    def forward(self, context: ForwardContext) -> torch.Tensor:
        """Logits float32 [num_sampled, vocab_size]."""
        return self.logits(self.last_hidden(context))

    def last_hidden(self, context: ForwardContext) -> torch.Tensor:
        """Hidden states [num_sampled, hidden_size] of the tokens whose logits are wanted."""
        hidden: torch.Tensor = self.model(context)
        return hidden

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits float32 [num_rows, vocab_size] of such states; into `out` where it is given."""
        logits: torch.Tensor = self.lm_head(hidden, out)
        if self._soft_cap:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits
