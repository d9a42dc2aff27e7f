"""The operations of the CUDA device under the names by which layers, runner and sampler call them (`Operations` in
`gpu_workers/operations.py`): Triton kernels, and cuBLAS for products of many rows."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels import hopper_linear
from kernels.activation import act_and_mul
from kernels.attention_backend import PagedAttention
from kernels.embedding import embed
from kernels.logits_masks import follow_sequences, keep_allowed
from kernels.logits_processors import add_logit_bias, apply_penalties, hold_back_stops
from kernels.prepare_step import StepPreparation
from kernels.rms_norm import add_rms_norm, gather_add_rms_norm, rms_norm
from kernels.sample import TokenSampler
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import MAX_ROWS, SkinnyTile, SkinnyWorkspace, choose, make_skinny_workspace
from kernels.step_tensors import Processor
from kernels.token_logprobs import token_logprobs
from kernels.token_masks import apply_token_masks
from kernels.top_n_sigma import keep_top_n_sigma

__all__ = [
    "PROCESSORS",
    "PackedWeight",
    "PagedAttention",
    "StepPreparation",
    "TokenSampler",
    "add_rms_norm",
    "apply_token_masks",
    "embed",
    "gather_add_rms_norm",
    "gather_rope",
    "linear",
    "linear_act_and_mul",
    "logits",
    "make_kv_cache",
    "make_rope_table",
    "pack_weight",
    "product_kind",
    "rms_norm",
    "token_logprobs",
]

PROCESSORS: dict[str, Processor] = {
    "bias": add_logit_bias,
    "penalties": apply_penalties,
    "held_back": hold_back_stops,
    "allowed": keep_allowed,
    "sequences": follow_sequences,
    "top_n_sigma": keep_top_n_sigma,
}
"""What changes logits, by the name of what a row needs."""


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


def product_kind(num_rows: int, num_out: int, num_in: int, device: torch.device, dtype: torch.dtype) -> Hashable:
    """Equal for numbers of rows that the same kernels multiply: few rows have kernels of their own."""
    if num_rows <= MAX_ROWS:
        return num_rows
    return is_fused(num_rows, num_out, num_in, device, dtype)


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


def make_kv_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A cache of zeros."""
    return torch.zeros(shape, dtype=dtype, device=device)


def make_rope_table(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The table stays in float32: the kernel rotates in float32 anyway, and it is small."""
    return table


def gather_rope(cos_sin: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing is gathered: the kernel looks each position up in the table itself."""
    return cos_sin, positions
