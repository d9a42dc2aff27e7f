"""The operations of the CUDA device under the names by which layers call them: Triton kernels, and cuBLAS for products.

What runner and sampler launch around a forward pass (`prepare_step`, `attention_tasks`, the sampling kernels) they
import themselves: it has no counterpart of the same shape on a CPU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels import paged_attention as attention_kernels
from kernels import rope_write_kv as rope_kernels
from kernels.activation import silu_and_mul
from kernels.attention_workspace import AttentionWorkspace
from kernels.embedding import embed
from kernels.rms_norm import add_rms_norm, gather_add_rms_norm, rms_norm

__all__ = [
    "StepAttention",
    "add_rms_norm",
    "embed",
    "gather_add_rms_norm",
    "gather_rope",
    "linear",
    "logits",
    "make_rope_table",
    "pack_weight",
    "paged_attention",
    "rms_norm",
    "rope_write_kv",
    "silu_and_mul",
]


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What attention needs in every layer of one step, beside the task map in the workspace."""

    workspace: AttentionWorkspace
    block_tables: torch.Tensor  # int32 [max_num_seqs, max_blocks], by row
    slot_mapping: torch.Tensor  # int32 [num_tokens]; -1: nothing is written
    has_long: bool
    """Whether some sequence may have more query tokens than the short variant takes."""


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """cuBLAS multiplies with weights as they are stored."""
    return weight


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [num_rows, in_features] · packedᵀ + bias."""
    return F.linear(x, packed, bias)


def logits(hidden: torch.Tensor, packed: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """hidden [N, hidden_size] · packedᵀ in float32 [N, V], into `out` where it is given. The sums are never rounded to
    the storage dtype, so logits that differ do not become equal."""
    if hidden.dtype == torch.float32:
        return torch.mm(hidden, packed.t(), out=out)
    return torch.mm(hidden, packed.t(), out_dtype=torch.float32, out=out)


def make_rope_table(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The table stays in float32: the kernel rotates in float32 anyway, and it is small."""
    return table


def gather_rope(cos_sin: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing is gathered: the kernel looks each position up in the table itself."""
    return cos_sin, positions


def rope_write_kv(
    qkv: torch.Tensor,
    rope_rows: tuple[torch.Tensor, torch.Tensor],
    kv_cache: torch.Tensor,
    layer: int,
    plan: StepAttention,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """As the reference; the queries [T, H·G, D] are a view into `qkv`, which is overwritten."""
    cos_sin, positions = rope_rows
    return rope_kernels.rope_write_kv(qkv, cos_sin, positions, plan.slot_mapping, kv_cache, layer, q_norm, k_norm, eps)


def paged_attention(
    query: torch.Tensor, kv_cache: torch.Tensor, layer: int, plan: StepAttention, scale: float, workspace: object
) -> torch.Tensor:
    """As the reference; the memory that it needs is part of the plan."""
    return attention_kernels.paged_attention(
        query, kv_cache, layer, plan.workspace, plan.block_tables, scale, has_long=plan.has_long
    )
