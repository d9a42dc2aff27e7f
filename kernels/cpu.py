"""The operations of the CPU device under the names by which layers, runner and sampler call them: the references."""

from kernels.reference import (
    AttentionPlan,
    add_rms_norm,
    embed,
    gather_add_rms_norm,
    gather_rope,
    make_kv_cache,
    make_rope_table,
    make_workspace,
    paged_attention,
    plan_attention,
    rms_norm,
    rope_write_kv,
)
from kernels.reference_inputs import StepInputs, apply_block_deltas, prepare_inputs
from kernels.reference_linear import linear, linear_act_and_mul, logits, pack_weight
from kernels.reference_random import row_keys
from kernels.reference_sampling import (
    apply_penalties,
    apply_token_masks,
    filter_thresholds,
    greedy,
    make_finite,
    sample_gumbel,
    token_logprobs,
)

__all__ = [
    "AttentionPlan",
    "StepInputs",
    "add_rms_norm",
    "apply_block_deltas",
    "apply_penalties",
    "apply_token_masks",
    "embed",
    "filter_thresholds",
    "gather_add_rms_norm",
    "gather_rope",
    "greedy",
    "linear",
    "linear_act_and_mul",
    "logits",
    "make_finite",
    "make_kv_cache",
    "make_rope_table",
    "make_workspace",
    "pack_weight",
    "paged_attention",
    "plan_attention",
    "prepare_inputs",
    "rms_norm",
    "rope_write_kv",
    "row_keys",
    "sample_gumbel",
    "token_logprobs",
]
