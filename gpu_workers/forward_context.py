"""What the layers need to know of a step beside the hidden states; passed explicitly, never kept in a global."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """One step. `attention` and `workspace` are the device's own: only its operations look inside."""

    input_ids: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    logits_indices: torch.Tensor  # [num_sampled]: the tokens whose logits are wanted
    kv_cache: torch.Tensor  # [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]
    attention: Any
    workspace: Any
