"""Llama (Touvron et al. 2023; Dubey et al. 2024): a pre-norm decoder with RoPE, grouped-query attention, gated MLP.

Mistral (Jiang et al. 2023) differs in what its layers see: the last `sliding_window` tokens where config.json says so.
"""

from engine_core.config.model_config import ModelConfig
from gpu_workers.layers.attention import SelfAttention
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM, DecoderLayer
from gpu_workers.layers.mlp import GatedMLP


def build_llama(config: ModelConfig, max_positions: int, build: BuildContext) -> CausalLM:
    """The model without weights; RoPE's table has `max_positions` rows."""

    def make_layer(index: int) -> DecoderLayer:
        attention = SelfAttention(config, index, build)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias, build=build)
        return DecoderLayer(config, attention, mlp, build)

    return CausalLM(config, max_positions, make_layer, build)
