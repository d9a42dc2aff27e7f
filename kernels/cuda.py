"""The operations of the CUDA device under the names by which layers call them: Triton kernels, and cuBLAS for products
of many rows.

What runner and sampler launch around a forward pass (`prepare_step`, `attention_tasks`, the sampling kernels) they
import themselves: it has no counterpart of the same shape on a CPU.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels import hopper_linear
from kernels import paged_attention as attention_kernels
from kernels import rope_write_kv as rope_kernels
from kernels.activation import act_and_mul
from kernels.attention_workspace import AttentionWorkspace
from kernels.embedding import embed
from kernels.rms_norm import add_rms_norm, gather_add_rms_norm, rms_norm
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import SkinnyTile, SkinnyWorkspace, choose, make_skinny_workspace

__all__ = [
    "PackedWeight",
    "StepAttention",
    "add_rms_norm",
    "embed",
    "gather_add_rms_norm",
    "gather_rope",
    "linear",
    "linear_act_and_mul",
    "logits",
    "make_rope_table",
    "pack_weight",
    "paged_attention",
    "rms_norm",
    "rope_write_kv",
]


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What attention needs in every layer of a group in one step, beside the task map in the workspace."""

    workspace: AttentionWorkspace
    block_tables: torch.Tensor  # int32 [max_num_seqs, max_blocks], by row
    slot_mapping: torch.Tensor  # int32 [num_tokens]; -1: nothing is written
    has_long: bool
    """Whether some sequence may have more query tokens than the short variant takes."""
    has_shared: bool
    """Whether the task map has the rows' common beginning apart."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out_features, in_features] as it was stored, and what products of few rows need beside it."""

    tensor: torch.Tensor
    workspace: SkinnyWorkspace


_shared_workspace = functools.cache(make_skinny_workspace)
"""One for all weights of a device: their products run on one stream."""


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Copies nothing."""
    return PackedWeight(weight, _shared_workspace(weight.device))


def _skinny_tile(x: torch.Tensor, packed: PackedWeight) -> SkinnyTile | None:
    """None: cuBLAS multiplies."""
    num_out, num_in = packed.tensor.shape
    return choose(len(x), num_out, num_in, packed.tensor.dtype)


def linear(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x [num_rows, in_features] · packedᵀ + bias."""
    tile = _skinny_tile(x, packed)
    if tile is None:
        return F.linear(x, packed.tensor, bias)
    return skinny_linear(x, packed.tensor, bias, packed.workspace, tile)


def is_fused(num_rows: int, num_out: int, num_in: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a gated product of x [num_rows, num_in] and a weight [num_out, num_in] without a bias is one launch of
    `hopper_linear` instead of cuBLAS's and the activation."""
    return hopper_linear.supports(device, dtype, num_out, num_in, gated=True) and hopper_linear.is_faster_gated(
        num_rows, num_out, num_in, hopper_linear.num_programs(device)
    )


def linear_act_and_mul(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """act(gate) · up of the product x · packedᵀ + bias = [gate, up]; one launch for few rows and on Hopper."""
    num_out, num_in = packed.tensor.shape
    if bias is None and is_fused(len(x), num_out, num_in, x.device, x.dtype):
        return hopper_linear.hopper_linear(x, packed.tensor, activation=activation)
    tile = _skinny_tile(x, packed)
    if tile is None:
        return act_and_mul(F.linear(x, packed.tensor, bias), activation)
    return skinny_linear(x, packed.tensor, bias, packed.workspace, tile, activation=activation)


def logits(hidden: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None = None) -> torch.Tensor:
    """hidden [N, hidden_size] · packedᵀ in float32 [N, V], into `out` where it is given. The sums are never rounded to
    the storage dtype, so logits that differ do not become equal. cuBLAS is near the memory's limit here: the weight is
    large."""
    weight = packed.tensor.t()
    if hidden.dtype == torch.float32:
        return torch.mm(hidden, weight, out=out)
    return torch.mm(hidden, weight, out_dtype=torch.float32, out=out)


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
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    plan: StepAttention,
    scale: float,
    workspace: object,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """As the reference; the memory that it needs is part of the plan."""
    return attention_kernels.paged_attention(
        query,
        kv_cache,
        layer,
        plan.workspace,
        plan.block_tables,
        scale,
        has_long=plan.has_long,
        has_shared=plan.has_shared,
        soft_cap=soft_cap,
    )
