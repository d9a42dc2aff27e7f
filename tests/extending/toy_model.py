"""The model file of an invented architecture: Llama's decoder with a norm of each head of queries and keys."""

from engine_core.config.model_config import ModelConfig
from gpu_workers.layers.attention import SelfAttention
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM, DecoderLayer
from gpu_workers.layers.mlp import GatedMLP
from gpu_workers.layers.norm import RMSNorm


def build_toy(config: ModelConfig, max_positions: int, build: BuildContext) -> CausalLM:
    def make_layer(index: int) -> DecoderLayer:
        attention = SelfAttention(config, index, build, qk_norm=RMSNorm)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, build=build)
        return DecoderLayer(config, attention, mlp, build)

    return CausalLM(config, max_positions, make_layer, build)
