"""What the layers need to know of a step beside the hidden states; passed explicitly, never kept in a global."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """One step. What `attention` has for each layer group and `workspace` are the device's own: only its operations
    look inside."""

    input_ids: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    logits_indices: torch.Tensor  # [num_sampled]: the tokens whose logits are wanted
    kv_cache: torch.Tensor  # [num_blocks, layers_per_block, 2, num_kv_heads, block_size, head_dim]
    attention: Sequence[Any]  # [num_groups]
    workspace: Any
    wanted: torch.Tensor | None = None  # [num_wanted]: tokens that this layer goes on with behind attention; None: all

    def choose(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of `x` [num_tokens, n] that the layer goes on with."""
        return x if self.wanted is None else x.index_select(0, self.wanted)
