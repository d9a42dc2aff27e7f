"""What a worker takes beside weights and KV cache: a step's activations, the sampler, rows, fixed buffers, libraries.

The figures of a CPU are upper estimates. Those of a GPU follow the code of `gpu_workers` and `kernels` tensor by
tensor, because all that they leave becomes KV cache: who changes there what a layer keeps alive, or how large a buffer
is, changes it here as well.
"""

import msgspec

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.layer_groups import LayerGroups
from engine_core.config.model_config import ModelConfig
from engine_core.planning.model_memory import head_sizes

MIB = 2**20
CPU_RUNTIME_BYTES = 256 * MIB
"""What torch's pools take."""
CUDA_CONTEXT_BYTES = 512 * MIB
"""The driver's context with the code of torch's, cuBLAS' and our kernels."""
CUBLAS_WORKSPACE_BYTES = 32 * MIB
GRAPH_BYTES = 3 * MIB // 2
NUM_GRAPHS = 116
"""About as many as `gpu_workers` captures by default; each keeps its nodes on the device, not its intermediates."""

COMMUNICATION_BYTES = 256 * MIB
"""Channels and buffers of NCCL where several ranks share a model: an estimate."""

PENALTY_BYTES_PER_TOKEN = 5
"""Per penalty row and vocabulary entry: whether the prompt has it, and an int32 count of the output's."""
CPU_ROW_BYTES = (12 + 8) * 1024 + 128 * 16 * 32 + 256
"""Per row beside its block table: up to 1024 logit biases (an int64 and a float32 each) and allowed ids, 128 bad words
of 16 tokens as Python's numbers, and its own numbers."""
CUDA_ROW_BYTES = (8 + 4) * 1024 + 4 * (128 + 64) + 4 * (130 + 1) * 16 + 256
"""The same on a GPU: biases (an int32 and a float32 each), allowed ids, ids that may not be sampled yet, sequences of
tokens and the latest ones, its numbers."""
PLAN_SLOTS = 6
"""Copies of a plan on a GPU: one per slot of the ring, and an empty one."""
SAMPLER_ROW_BYTES = 32 * 1024
"""Scratch per row on a GPU: candidates of top-k and top-p, their histogram, two numbers a block of the vocabulary."""

_CPU_ACTIVATION_COPIES = 4
"""Copies of the residual stream that are alive at once: it, its normed form, an operation's input and output."""
_CPU_LOGIT_COPIES = 4
"""Copies of the float32 logits in the sampler: logits, probabilities, sorted values and indices."""
_CPU_SCORE_COPIES = 2
"""Copies of a slice of a prompt's logits, before those of the sampler are made: logits, and what ranks them."""
SCORE_BYTES = 4 * (2 + 2 * 20)
"""What a result has for each token of a step: its log-probability and rank, and the same of 20 others."""

# Paged attention's tiles (`kernels/attention_workspace.py`): programs and rows of a tile. Each program may leave two
# partial results.
_NUM_SMS = 132
_PARTIALS = ((4 * _NUM_SMS, 16), (_NUM_SMS, 128))
_TASK_BYTES_PER_TOKEN = 32
"""At most one record of the task map for each token."""
_PRODUCT_BUFFER_BYTES = 4 * _NUM_SMS * (64 * 32 + 2)
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
    dtype_bytes: int,
    device: str,
    block_size: int,
    cuda_graphs: bool,
    num_ranks: int = 1,
) -> WorkerMemory:
    """What a worker on `device` ("cpu" or "cuda") needs for steps of the scheduler's greatest size. `model` is this
    rank's share of one that is spread over `num_ranks`."""
    communication_bytes = COMMUNICATION_BYTES if num_ranks > 1 else 0
    penalty_bytes = scheduler.max_num_penalty_rows * model.vocab_size * PENALTY_BYTES_PER_TOKEN
    table_bytes = len(groups) * scheduler.max_num_seqs * -(-scheduler.max_model_len // block_size) * 4
    logit_bytes = scheduler.max_num_seqs * model.vocab_size * 4
    scored_logit_bytes = scheduler.max_scored_rows * model.vocab_size * 4
    rope_values = (1 if model.sliding_rope is None else 2) * scheduler.max_model_len * model.head_dim
    attention_bytes = len(set(groups.windows)) * _attention_buffer_bytes(model, scheduler)
    if groups.windows == (0,):  # the float32 results of the keys that all rows begin with
        attention_bytes += scheduler.max_num_seqs * model.num_attention_heads * (model.head_dim + 1) * 4
    if device == "cpu":
        return WorkerMemory(
            activation_bytes=_cpu_activation_bytes(model, scheduler, dtype_bytes),
            sampler_bytes=max(_CPU_LOGIT_COPIES * logit_bytes, _CPU_SCORE_COPIES * scored_logit_bytes),
            buffer_bytes=rope_values * dtype_bytes,
            row_bytes=table_bytes + scheduler.max_num_seqs * (CPU_ROW_BYTES + _history_bytes(scheduler)),
            penalty_bytes=penalty_bytes,
            graph_bytes=0,
            runtime_bytes=CPU_RUNTIME_BYTES + communication_bytes,
        )
    return WorkerMemory(
        activation_bytes=_cuda_activation_bytes(model, scheduler, dtype_bytes),
        # The logits, and beside them a slice of a prompt's, or the same ones as they were for log-probabilities.
        sampler_bytes=logit_bytes + scored_logit_bytes + scheduler.max_num_seqs * SAMPLER_ROW_BYTES,
        buffer_bytes=rope_values * 4 + attention_bytes + _PRODUCT_BUFFER_BYTES,
        row_bytes=(
            table_bytes
            + scheduler.max_num_seqs * CUDA_ROW_BYTES
            + _plan_bytes(scheduler, len(groups))
            + _mask_bytes(scheduler, model.vocab_size)
        ),
        penalty_bytes=penalty_bytes,
        graph_bytes=NUM_GRAPHS * GRAPH_BYTES if cuda_graphs else 0,
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


def _attention_buffer_bytes(model: ModelConfig, scheduler: SchedulerConfig) -> int:
    """Partial results in float32, rows and features padded to powers of two, and the task map."""
    group_rows = _power_of_two(model.num_attention_heads // model.num_key_value_heads)
    padded_dim = max(16, _power_of_two(model.head_dim))
    partials = sum(programs * 2 * max(rows, group_rows) * (padded_dim + 2) * 4 for programs, rows in _PARTIALS)
    tasks = (scheduler.max_num_batched_tokens + 2 * scheduler.max_num_seqs) * _TASK_BYTES_PER_TOKEN
    return partials + tasks


def _plan_bytes(scheduler: SchedulerConfig, num_groups: int) -> int:
    """Plans on the device, a little more than `engine_core/ipc/step.py` lays out: a row's whole history, tokens and
    block table entries, records; and of results what they have for every token of a step."""
    length = scheduler.max_model_len + scheduler.max_num_batched_tokens
    words = 2 * length + 4 * scheduler.max_num_batched_tokens + 128 * scheduler.max_num_seqs
    words += (num_groups - 1) * (length // 2 + 4 * scheduler.max_num_seqs)
    return PLAN_SLOTS * (4 * words + SCORE_BYTES * scheduler.max_num_batched_tokens)


def _mask_bytes(scheduler: SchedulerConfig, vocab_size: int) -> int:
    """What grammars allow, a bit for each token and row, and the rows: copies on the device, one per slot."""
    return (PLAN_SLOTS - 1) * scheduler.max_num_seqs * 4 * (-(-vocab_size // 32) + 1)


def _history_bytes(scheduler: SchedulerConfig) -> int:
    """A row's tokens in the engine core, which lie in the machine's memory: untouched at first, but a page once used
    stays."""
    return scheduler.max_model_len * 4


def _power_of_two(number: int) -> int:
    """The next one that is not smaller."""
    return 1 << (number - 1).bit_length()
