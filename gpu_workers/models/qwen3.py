"""Qwen3, dense (Qwen Team 2025): Llama's decoder, but each head of q and k is normalized before RoPE.

The size of a head is stated in config.json and need not be hidden_size / num_attention_heads.
"""

from engine_core.config.model_config import ModelConfig
from gpu_workers.layers.attention import SelfAttention
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM, DecoderLayer
from gpu_workers.layers.mlp import GatedMLP
from gpu_workers.layers.norm import RMSNorm


def build_qwen3(config: ModelConfig, max_positions: int, build: BuildContext) -> CausalLM:
    """The model without weights; RoPE's table has `max_positions` rows."""

    def make_layer(index: int) -> DecoderLayer:
        attention = SelfAttention(config, index, build, qk_norm=RMSNorm)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, build=build)
        return DecoderLayer(config, attention, mlp, build)

    return CausalLM(config, max_positions, make_layer, build)
