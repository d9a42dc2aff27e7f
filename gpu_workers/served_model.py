"""A worker's model: built for its device without weights, then filled."""

from pathlib import Path

import torch

from engine_core.config.engine_config import EngineConfig, WorkerPlace
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM
from gpu_workers.loader import ProgressCallback, fill_dummy_weights, load_weights
from gpu_workers.models.registry import build_model
from gpu_workers.operations import Operations, torch_dtype
from gpu_workers.quantization import load_linear_method


class ServedModel:
    def __init__(self, config: EngineConfig, operations: Operations, device: torch.device, place: WorkerPlace) -> None:
        """Raises `ConfigError` when the model is not supported."""
        self._config = config
        build = BuildContext(
            dtype=torch_dtype(config.dtype),
            device=device,
            operations=operations,
            linear_method=load_linear_method(config.model.quantization),
            layer_groups=config.layer_groups().of_stage(place.stage),
            stage=place.stage,
            tp_rank=place.tp_rank,
            tp_size=config.parallel.tensor_parallel_size,
        )
        self.module: CausalLM = build_model(config.model, config.scheduler.max_model_len, build)
        self.weight_bytes = 0
        """What the weights took when they were loaded; packing may since have replaced them."""

    @torch.inference_mode()
    def load(self, progress: ProgressCallback) -> None:
        """Fills the weights. Raises `ConfigError` when the checkpoint does not fit."""
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())
        if self._config.load_format == "dummy":
            fill_dummy_weights(self.module, self._config.seed, progress)
        else:
            load_weights(self.module, Path(self._config.model.path), progress)
