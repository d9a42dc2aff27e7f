"""A compact Llama for training, with Hugging Face's parameter names, and its export as a model folder.

Shapes: B batch, T tokens, H hidden, N query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .tokenizer import BOS, END, EOS, PAD, TOKEN_ID, VOCAB_SIZE


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes of one network."""

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    vocab_size: int = VOCAB_SIZE
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


MAIN = NetworkConfig()
DRAFT = NetworkConfig(
    hidden_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=128
)
TINY = NetworkConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=128
)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout: x [B, heads, T, D], cos and sin [T, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        query, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        config = self.config
        groups = config.num_attention_heads // config.num_key_value_heads
        q = self.q_proj(x).view(batch, length, config.num_attention_heads, config.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, config.num_key_value_heads, config.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, config.num_key_value_heads, config.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, N, T, D]
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(ids).to(cos.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Network(nn.Module):
    """Token ids [B, T] to logits [B, T, vocabulary]; the output projection is the embedding."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.compute_dtype = torch.float32  # training sets bfloat16 and runs under autocast
        frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            scale = (
                1.0
                if module.out_features != self.config.hidden_size
                else 1 / math.sqrt(2 * self.config.num_hidden_layers)
            )
            nn.init.normal_(module.weight, std=scale * 0.02 * math.sqrt(384 / self.config.hidden_size))

    def hidden(self, ids: Tensor) -> Tensor:
        """The last layer's output [B, T, H]."""
        length = ids.shape[1]
        return self.model(ids, self.cos[:length].to(self.compute_dtype), self.sin[:length].to(self.compute_dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def export(network: Network, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bf16), the weights whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [TOKEN_ID[EOS], TOKEN_ID[END]]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(network.config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": TOKEN_ID[BOS],
        "eos_token_id": ends,
        "pad_token_id": TOKEN_ID[PAD],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    generation = {
        "bos_token_id": TOKEN_ID[BOS],
        "eos_token_id": ends,
        "pad_token_id": TOKEN_ID[PAD],
        "do_sample": False,
    }
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()
    }
    temporary = folder / "model.safetensors.part"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
