"""What pre-norm decoders have in common: the layer's two residual additions, the stack of layers, embedding and logits.
A pipeline stage has some of these parts.

A model hands in the attention and the MLP of each layer and states nothing else. Parameters are named as in the
checkpoints, but for the fused ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from engine_core.config.model_config import ModelConfig
from engine_core.config.stages import EMBEDDING, OUTPUT
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


class HiddenStates(NamedTuple):
    """What one stage hands to the next, or to the projection."""

    x: torch.Tensor  # [num_tokens, hidden_size]
    residual: torch.Tensor | None  # [num_tokens, hidden_size]: what `x` is still to be added to; None: nothing


class Decoder(nn.Module):
    """The embedding, the layers and the final norm, each as far as `build.stage` has it."""

    def __init__(
        self,
        config: ModelConfig,
        max_positions: int,
        make_layer: Callable[[int], nn.Module],
        build: BuildContext,
        norm: type[RMSNorm],
        embedding_scale: float,
    ) -> None:
        super().__init__()
        stage, hidden_size = build.stage, config.hidden_size
        # A tied matrix is stored under either name, so the last stage has both until its weights are there.
        embeds = stage.loads(EMBEDDING, config)
        self.embed_tokens = Embedding(config.vocab_size, hidden_size, build, embedding_scale) if embeds else None
        ropes = (config.rope,) if config.sliding_rope is None else (config.rope, config.sliding_rope)
        self.rotary = nn.ModuleList(RotaryEmbedding(config.head_dim, max_positions, rope, build) for rope in ropes)
        self.layers = nn.ModuleDict({str(layer): make_layer(layer) for layer in stage.layers})
        self.norm = norm(hidden_size, config.rms_norm_eps, build) if stage.has_head else None

    def forward(self, context: ForwardContext, incoming: HiddenStates | None = None) -> HiddenStates:
        """From what the stage before hands over, None on the first one, to what the next one needs. The last stage
        gives normed states [num_sampled, hidden_size] of the tokens whose logits are wanted, and no residual."""
        rope_rows = [rotary(context.positions) for rotary in self.rotary]
        if incoming is None:
            assert self.embed_tokens is not None
            incoming = HiddenStates(self.embed_tokens(context.input_ids), None)
        x, residual = incoming
        *layers, last = self.layers.values()
        for layer in layers:
            x, residual = layer(x, residual, rope_rows, context)
        if self.norm is None:
            return HiddenStates(*last(x, residual, rope_rows, context))
        indices = context.logits_indices
        if len(indices) * _WORTH_CHOOSING > len(context.input_ids):
            x, residual = last(x, residual, rope_rows, context)
            return HiddenStates(self.norm.gather_add(x, residual, indices), None)
        # Keys and values are there; nothing reads what the last layer makes of the other tokens.
        x, residual = last(x, residual, rope_rows, replace(context, wanted=indices.clamp(min=0)))
        normed, _ = self.norm.add(x, residual)
        return HiddenStates(normed, None)


class CausalLM(nn.Module):
    """A decoder and the projection to logits, which a model may tie to its embedding; `norm` is the last one's kind.
    `make_layer` builds the layer of a number; only those of `build.stage` are built."""

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
        make_layer: Callable[[int], nn.Module],
        build: BuildContext,
        norm: type[RMSNorm] = RMSNorm,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._config, self._stage = config, build.stage
        self._soft_cap = config.final_logit_softcapping
        self.model = Decoder(config, max_positions, make_layer, build, norm, embedding_scale)
        self.lm_head: LMHead | None = None
        if self.loads(OUTPUT):
            tied = self.model.embed_tokens if config.tie_word_embeddings else None
            self.lm_head = LMHead(config.vocab_size, config.hidden_size, build, tied)

    def loads(self, name: str) -> bool:
        """Whether a checkpoint's tensor is for this stage."""
        return self._stage.loads(name, self._config)

    def finish_loading(self) -> None:
        """Lets go of the name of a tied matrix under which this stage does not use it."""
        if not self._stage.has_embedding:
            self.model.embed_tokens = None
        if not self._stage.has_head:
            self.lm_head = None

    def last_hidden(self, context: ForwardContext, incoming: HiddenStates | None = None) -> torch.Tensor:
        """Hidden states [num_sampled, hidden_size] of the tokens whose logits are wanted, on the last stage."""
        hidden: HiddenStates = self.model(context, incoming)
        return hidden.x

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits float32 [num_rows, vocab_size] of such states; into `out` where it is given."""
        assert self.lm_head is not None
        logits: torch.Tensor = self.lm_head(hidden, out)
        if self._soft_cap:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits
