"""Rotary position embeddings (Su et al. 2021): the table of cosines and sines, plain or scaled for longer contexts."""

import math
from typing import Any

import torch
from torch import nn

from engine_core.config.rope import RopeConfig
from gpu_workers.layers.build import BuildContext


class RotaryEmbedding(nn.Module):
    """Shared by all layers; gives them a step's rotations, gathered once."""

    cos_sin: torch.Tensor  # [max_positions, head_dim]: cosines, then sines; the dtype is the device's choice

    def __init__(self, head_dim: int, max_positions: int, rope: RopeConfig, build: BuildContext) -> None:
        super().__init__()
        self._operations = build.operations
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inverse_frequencies(head_dim, rope))
        table = torch.cat((angles.cos(), angles.sin()), dim=-1)
        table = self._operations.make_rope_table(table.to(build.device), build.dtype)
        self.register_buffer("cos_sin", table, persistent=False)

    def forward(self, positions: torch.Tensor) -> Any:  # [num_tokens]
        return self._operations.gather_rope(self.cos_sin, positions)


def inverse_frequencies(head_dim: int, rope: RopeConfig) -> torch.Tensor:
    """Radians per position for each pair of features, float32 [head_dim / 2]."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(frequencies, rope)
    assert rope.rope_type == "default", rope
    return frequencies


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1: waves that repeat often within the original context stay, those that do not even once are stretched by
    `factor`, and between the two a straight line leads over."""
    wavelengths = 2 * math.pi / frequencies
    repeats = rope.original_max_position_embeddings / wavelengths
    kept = (repeats - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / rope.factor
