"""What a worker takes beside weights and KV cache: a step's activations, the sampler, rows, fixed buffers, libraries.

The figures of a CPU are upper estimates. Those of a GPU count tensor by tensor, because all that they leave becomes KV
cache. Rows, plans and results have layouts in `engine_core/ipc`, from which the worker allocates them too. What kernels
keep to themselves is stated here, and `tests/planning/test_worker_tensors.py` compares it with what they allocate.
"""

import msgspec

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import LayerGroups
from engine_core.config.model_config import ModelConfig
from engine_core.config.step_sizes import StepSizes
from engine_core.ipc.arrays import ArrayLayout
from engine_core.ipc.step import StepShape, late_layout, plan_layout, result_layout
from engine_core.ipc.worker_tensors import input_layout, penalty_layout, row_layout
from engine_core.planning.model_memory import head_sizes

MIB = 2**20
CPU_RUNTIME_BYTES = 256 * MIB
"""What torch's pools take."""
CUDA_CONTEXT_BYTES = 512 * MIB
"""The driver's context with the code of torch's, cuBLAS' and our kernels."""
CUBLAS_WORKSPACE_BYTES = 32 * MIB
GRAPH_BYTES = 3 * MIB // 2
"""Each graph keeps its nodes on the device, not its intermediates."""
COMMUNICATION_BYTES = 256 * MIB
"""Channels and buffers of NCCL where several ranks share a model: an estimate."""

SAMPLER_ROW_BYTES = 18 * 1024
"""Scratch per row on a GPU, whatever the vocabulary: candidates of top-k and top-p, their histogram, sums."""

_CPU_ACTIVATION_COPIES = 4
"""Copies of the residual stream that are alive at once: it, its normed form, an operation's input and output."""
_CPU_LOGIT_COPIES = 8
"""Copies of the float32 logits that are alive at once beside them, in a draw from a wide nucleus: scaled logits,
probabilities, hashes of 8 bytes."""
_CPU_SCORE_COPIES = 2
"""Copies of a slice of a prompt's logits beside it: the product before it is stored, in two dtypes."""

_NUM_SMS = 132
PRODUCT_BUFFER_BYTES = 4 * _NUM_SMS * (64 * 32 + 2)
"""Partial results of products of few rows (`kernels/skinny_tiles.py`): programs, elements of a tile and counters."""


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by purpose."""

    activation_bytes: int
    """One step's peak in the layers."""
    sampler_bytes: int
    """Logits and what the sampler needs beside them."""
    buffer_bytes: int
    """Fixed: RoPE's table, partial results of attention and of products."""
    row_bytes: int
    """Block tables, biases and numbers of all rows; on a CPU also the engine core's copy of their tokens."""
    penalty_bytes: int
    graph_bytes: int
    """CUDA graphs; their intermediates are the activations."""
    runtime_bytes: int


def worker_memory(
    model: ModelConfig,
    groups: LayerGroups,
    scheduler: SchedulerConfig,
    shape: StepShape,
    dtype_bytes: int,
    device: str,
    cuda_graphs: bool,
    num_ranks: int = 1,
) -> WorkerMemory:
    """What a worker on `device` ("cpu" or "cuda") needs for steps of the scheduler's greatest size, which is that of
    `shape`. `model` is this rank's share of one that is spread over `num_ranks`."""
    num_rows, vocab_size = scheduler.max_num_seqs, model.vocab_size
    communication_bytes = COMMUNICATION_BYTES if num_ranks > 1 else 0
    # The logits, and beside them a slice of a prompt's, or the same ones as they were for log-probabilities.
    logit_bytes, scored_logit_bytes = num_rows * vocab_size * 4, scheduler.max_scored_rows * vocab_size * 4
    rope_values = (1 if model.sliding_rope is None else 2) * scheduler.max_model_len * model.head_dim
    row_bytes = row_layout(shape).num_bytes + input_layout(shape).num_bytes + _slot_bytes(shape, scheduler.num_slots)
    penalty_bytes = penalty_layout(scheduler.max_num_penalty_rows, vocab_size).num_bytes
    if device == "cpu":
        copies = max(_CPU_LOGIT_COPIES * logit_bytes, _CPU_SCORE_COPIES * scored_logit_bytes)
        return WorkerMemory(
            activation_bytes=_cpu_activation_bytes(model, scheduler, dtype_bytes),
            sampler_bytes=logit_bytes + scored_logit_bytes + copies,
            buffer_bytes=rope_values * dtype_bytes,
            # The engine core's copy of a row's tokens is in the machine's memory too: a page once used stays.
            row_bytes=row_bytes + num_rows * scheduler.max_model_len * 4,
            penalty_bytes=penalty_bytes,
            graph_bytes=0,
            runtime_bytes=CPU_RUNTIME_BYTES + communication_bytes,
        )
    shares_beginnings = groups.windows == (0,)  # as kernels/attention_backend.py
    workspace = attention_layout(model, shape, dtype_bytes, num_rows if shares_beginnings else 0)
    sizes = StepSizes(num_rows, scheduler.max_num_batched_tokens, shares_beginnings).all()
    return WorkerMemory(
        activation_bytes=_cuda_activation_bytes(model, scheduler, dtype_bytes),
        sampler_bytes=logit_bytes + scored_logit_bytes + sampler_scratch_bytes(scheduler.max_scored_rows, vocab_size),
        buffer_bytes=rope_values * 4 + len(set(groups.windows)) * workspace.num_bytes + PRODUCT_BUFFER_BYTES,
        row_bytes=row_bytes,
        penalty_bytes=penalty_bytes,
        graph_bytes=len(sizes) * GRAPH_BYTES if cuda_graphs else 0,
        runtime_bytes=CUDA_CONTEXT_BYTES + CUBLAS_WORKSPACE_BYTES + communication_bytes,
    )


def _cpu_activation_bytes(model: ModelConfig, scheduler: SchedulerConfig, dtype_bytes: int) -> int:
    """The widest layer over all tokens of a step; attention also gathers the keys and values of one sequence and layer
    and masks its scores."""
    q_size, kv_size = head_sizes(model)
    widest = max(3 * model.intermediate_size, 3 * q_size + 2 * kv_size)
    forward = scheduler.max_num_batched_tokens * (_CPU_ACTIVATION_COPIES * model.hidden_size + widest) * dtype_bytes
    longest = scheduler.max_model_len
    matrices = 1
    if model.attn_logit_softcapping:  # no fused attention: the scores of a KV head, before and after
        matrices += 2 * model.num_attention_heads // model.num_key_value_heads
    return forward + longest * (
        2 * kv_size * dtype_bytes + 4 * matrices * min(scheduler.max_num_batched_tokens, longest)
    )


def _cuda_activation_bytes(model: ModelConfig, scheduler: SchedulerConfig, dtype_bytes: int) -> int:
    """The most that is alive at one point of a layer. Through all of it the residual lives, and the previous layer's
    output, which the loop over the layers still names. Graphs and steps without one share this memory."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q_size, kv_size = head_sizes(model)
    qkv_size = q_size + 2 * kv_size
    points = (
        hidden + qkv_size + q_size,  # attention: its normed input, queries (rotated in place), keys, values, its output
        hidden + q_size + hidden,  # its projection: normed input, input, output
        hidden + hidden,  # the norm after it
        hidden + 2 * inner + inner,  # the activation: normed input, gate and up, their product
        hidden + inner + hidden,  # the last product: normed input, input, output
    )
    last_hidden = scheduler.max_num_seqs * hidden  # of the tokens whose logits are wanted
    return (scheduler.max_num_batched_tokens * (2 * hidden + max(points)) + 2 * last_hidden) * dtype_bytes


def attention_layout(model: ModelConfig, shape: StepShape, dtype_bytes: int, max_shared_tokens: int) -> ArrayLayout:
    """The workspace of the layers with one sliding window (`kernels/attention_workspace.py`, with the same names). The
    kernels choose their tiles by head_dim; here is the most that any choice takes."""
    num_heads, num_kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    s, padded_dim = shape.max_num_seqs, max(16, _power_of_two(head_dim))
    group_rows = _power_of_two(num_heads // num_kv_heads)
    programs_per_sm, most_rows, fewest_rows = (1, 128, 128) if dtype_bytes == 2 else (2, 32, 16)
    long_capacity = shape.max_num_batched_tokens // max(1, fewest_rows // group_rows) + s
    fields: dict[str, tuple[str, tuple[int, ...]]] = {
        "long_seqs": ("<i4", (s,)),
        "first_segment": ("<i4", (s,)),
        "shared_out": ("<f4", (max_shared_tokens, num_heads, head_dim)),
        "shared_lse": ("<f4", (max_shared_tokens, num_heads)),
    }
    for variant, programs, tile_rows, capacity in (
        ("short", 4 * _NUM_SMS, 8, s),
        ("long", programs_per_sm * _NUM_SMS, most_rows, long_capacity),
    ):
        rows = max(tile_rows, group_rows)
        fields |= {
            f"{variant}.segments": ("<i4", (capacity + 1, 8)),
            f"{variant}.programs": ("<i4", (programs, 16)),
            f"{variant}.partial_acc": ("<f4", (programs, 2, rows, padded_dim)),
            f"{variant}.partial_stats": ("<f4", (programs, 2, 2, rows)),
            f"{variant}.arrivals": ("<i4", (capacity, num_kv_heads)),
        }
    return ArrayLayout(fields)


def sampler_scratch_bytes(num_rows: int, vocab_size: int) -> int:
    """Of so many rows: two numbers a block of 1,024 tokens, and of log-probabilities three numbers a piece of 4,096
    tokens with its 32 likeliest and their ids."""
    num_words = 2 * -(-vocab_size // 1024) + (3 + 2 * 32) * -(-vocab_size // 4096)
    return num_rows * (SAMPLER_ROW_BYTES + 4 * num_words)


def _slot_bytes(shape: StepShape, num_slots: int) -> int:
    """Plans and results on the device, one per slot of the rings and an empty one; what grammars allow, and the rows
    that it is for, one per slot."""
    plans, results = plan_layout(shape), result_layout(shape)
    mask_bytes = late_layout(shape).sizes["masks"] + plans.sizes["mask_rows"]
    return (num_slots + 1) * (plans.num_bytes + results.num_bytes) + num_slots * mask_bytes


def _power_of_two(number: int) -> int:
    """The next one that is not smaller."""
    return 1 << (number - 1).bit_length()
