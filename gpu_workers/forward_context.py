"""What the layers need to know of a step beside the hidden states; passed explicitly, never kept in a global."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_workers.operations import StepAttention


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """One step."""

    input_ids: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    logits_indices: torch.Tensor  # [num_sampled]: the tokens whose logits are wanted
    attention: Sequence[StepAttention]  # [num_groups]
    wanted: torch.Tensor | None = None  # [num_wanted]: tokens that this layer goes on with behind attention; None: all

    def choose(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of `x` [num_tokens, n] that the layer goes on with."""
        return x if self.wanted is None else x.index_select(0, self.wanted)
