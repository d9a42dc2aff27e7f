"""The operations of the CPU device under the names by which layers, runner and sampler call them (`Operations` in
`gpu_workers/operations.py`): PyTorch and numpy. Where the references are as fast as anything, they serve."""

from kernels.cpu.attention import PagedAttention, make_kv_cache
from kernels.cpu.packed_linear import linear, linear_act_and_mul, logits, pack_weight
from kernels.cpu.prepare_step import StepPreparation
from kernels.cpu.sampling import (
    PROCESSORS,
    TokenSampler,
    apply_token_masks,
    token_logprobs,
)
from kernels.reference import add_rms_norm, embed, gather_add_rms_norm, gather_rope, make_rope_table, rms_norm

__all__ = [
    "PROCESSORS",
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
    "rms_norm",
    "token_logprobs",
]
