"""Architectures by their name in config.json; a model's module is imported when it is asked for."""

import importlib

from engine_core.config.errors import ConfigError
from engine_core.config.model_config import ModelConfig
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM

MODELS = {
    "LlamaForCausalLM": "gpu_workers.models.llama:build_llama",
    "MistralForCausalLM": "gpu_workers.models.llama:build_llama",
    "Qwen3ForCausalLM": "gpu_workers.models.qwen3:build_qwen3",
    "Gemma2ForCausalLM": "gpu_workers.models.gemma:build_gemma",
    "Gemma3ForCausalLM": "gpu_workers.models.gemma:build_gemma",
}


def build_model(config: ModelConfig, max_positions: int, build: BuildContext) -> CausalLM:
    """The model without weights. Raises `ConfigError` for an architecture that is not known."""
    target = MODELS.get(config.architecture)
    if target is None:
        raise ConfigError(f"The architecture {config.architecture} is not supported; supported: {', '.join(MODELS)}.")
    module, _, name = target.partition(":")
    model: CausalLM = getattr(importlib.import_module(module), name)(config, max_positions, build)
    return model
