"""What serving a model will cost in memory, computed before a weight is read: prices before allocation.

Everything here is arithmetic on config.json, the safetensors headers and the device's figures. The worker measures what
it really took and reports it beside these numbers.

    KV bytes per token = 2 (keys and values) x layers x KV heads x head_dim x bytes per value
"""

import msgspec

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import CacheConfig, SchedulerConfig
from engine_core.config.errors import ConfigError
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig

GIB = 2**30
DEFAULT_CPU_KV_BYTES = GIB
CPU_KV_SHARE = 0.4
"""On a CPU the cache takes at most this share of what is free: the machine has other things to do."""
RUNTIME_BYTES = {"cpu": 256 * 2**20, "cuda": 640 * 2**20}
"""What a worker's libraries take on the device: torch's pools on a CPU; CUDA context and cuBLAS workspaces on a GPU."""
PENALTY_BYTES_PER_TOKEN = 5
"""Per penalty row and vocabulary entry: whether the prompt has it, and an int32 count of the output's."""
ROW_BYTES = 12 * 1024 + 128
"""Per row beside its block table: up to 1024 logit biases (an int64 and a float32 each) and its numbers."""
_PACKED_DTYPES = ("float32", "bfloat16")
"""As in `kernels/reference_linear.py`, which cannot be imported here."""
_ACTIVATION_COPIES = 4
"""Copies of the residual stream that are alive at once: it, its normed form, an operation's input and output."""
_LOGIT_COPIES = 4
"""Copies of the float32 logits in the sampler: logits, probabilities, sorted values and indices."""


class MemoryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the user said about memory; None or 0 where nothing was said."""

    block_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan in bytes, and what it can serve."""

    device: DeviceMemory
    weight_bytes: int
    activation_bytes: int
    row_bytes: int
    """Block tables, biases and numbers of all rows; on a CPU also the engine core's copy of their tokens."""
    penalty_bytes: int
    runtime_bytes: int
    kv_bytes_per_token: int
    block_size: int
    num_blocks: int
    max_model_len: int

    @property
    def bytes_per_block(self) -> int:
        return self.kv_bytes_per_token * self.block_size

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def fixed_bytes(self) -> int:
        """Everything but the cache."""
        return self.weight_bytes + self.activation_bytes + self.row_bytes + self.penalty_bytes + self.runtime_bytes

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.num_blocks * self.block_size

    @property
    def max_concurrency(self) -> float:
        """How many requests of `max_model_len` tokens fit at the same time."""
        return self.num_blocks / blocks_for(self.max_model_len, self.block_size)

    def cache_config(self, dtype: str, enable_prefix_caching: bool) -> CacheConfig:
        return CacheConfig(
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            bytes_per_block=self.bytes_per_block,
            dtype=dtype,
            enable_prefix_caching=enable_prefix_caching,
        )


def blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def make_memory_plan(
    model: ModelConfig,
    tensors: dict[str, TensorInfo] | None,
    dtype: str,
    scheduler: SchedulerConfig,
    device: DeviceMemory,
    request: MemoryRequest,
) -> MemoryPlan:
    """Divides the device's memory. `tensors` is None where weights are made up (`--load-format dummy`).

    Raises `ConfigError` when the model, or one request of `max_model_len` tokens, does not fit, and says what would.
    """
    dtype_bytes = DTYPE_BYTES[dtype]
    blocks_per_row = blocks_for(scheduler.max_model_len, request.block_size)
    plan = MemoryPlan(
        device=device,
        weight_bytes=weight_bytes(model, tensors, dtype_bytes) + packed_bytes(model, dtype, device.device),
        activation_bytes=activation_bytes(model, scheduler, dtype_bytes, device.device),
        row_bytes=scheduler.max_num_seqs * (blocks_per_row * 4 + ROW_BYTES + _history_bytes(scheduler, device.device)),
        penalty_bytes=scheduler.max_num_penalty_rows * model.vocab_size * PENALTY_BYTES_PER_TOKEN,
        runtime_bytes=RUNTIME_BYTES[device.device],
        kv_bytes_per_token=kv_bytes_per_token(model, dtype_bytes),
        block_size=request.block_size,
        num_blocks=0,
        max_model_len=scheduler.max_model_len,
    )
    usable = _usable_bytes(device, request)
    if plan.fixed_bytes >= usable:
        raise ConfigError(
            f"The model does not fit into memory: {format_bytes(plan.fixed_bytes)} are needed before any KV cache "
            f"(weights {format_bytes(plan.weight_bytes)}) and {format_bytes(usable)} can be used on this "
            f"{device.device.upper()}{_utilization_hint(device)}."
        )
    num_blocks = _kv_budget(plan, usable, request) // plan.bytes_per_block
    if request.num_gpu_blocks_override is not None:
        num_blocks = request.num_gpu_blocks_override
    plan = msgspec.structs.replace(plan, num_blocks=num_blocks)
    _check_cache(plan, usable)
    return plan


def weight_bytes(model: ModelConfig, tensors: dict[str, TensorInfo] | None, dtype_bytes: int) -> int:
    """The weights as loaded. A tied model's stored copy of the output matrix is not loaded."""
    if tensors is None:
        return num_parameters(model) * dtype_bytes
    tied = {"lm_head.weight"} if model.tie_word_embeddings else set()
    return sum(tensor.bytes_at(dtype_bytes) for name, tensor in tensors.items() if name not in tied)


def packed_bytes(model: ModelConfig, dtype: str, device: str) -> int:
    """On a CPU linear layers keep their weights in the library's own layout only. A tied matrix, which the embedding
    reads as well, is the one that is there twice; in a dtype that is not packed it is not."""
    if device != "cpu" or not model.tie_word_embeddings or dtype not in _PACKED_DTYPES:
        return 0
    return model.vocab_size * model.hidden_size * DTYPE_BYTES[dtype]


def _history_bytes(scheduler: SchedulerConfig, device: str) -> int:
    """A row's tokens in the engine core, which lie in the machine's memory: untouched at first, but a page once used
    stays."""
    return scheduler.max_model_len * 4 if device == "cpu" else 0


def num_parameters(model: ModelConfig) -> int:
    """Parameters of a dense decoder-only transformer of this shape."""
    q_size = model.num_attention_heads * model.head_dim
    kv_size = model.num_key_value_heads * model.head_dim
    attention = model.hidden_size * (q_size + 2 * kv_size) + q_size * model.hidden_size
    if model.attention_bias:
        attention += q_size + 2 * kv_size + model.hidden_size
    mlp = 3 * model.hidden_size * model.intermediate_size
    if model.mlp_bias:
        mlp += 2 * model.intermediate_size + model.hidden_size
    norms = 2 * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return embeddings + model.num_hidden_layers * (attention + mlp + norms) + model.hidden_size


def kv_bytes_per_token(model: ModelConfig, dtype_bytes: int) -> int:
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * dtype_bytes


def activation_bytes(model: ModelConfig, scheduler: SchedulerConfig, dtype_bytes: int, device: str) -> int:
    """An upper estimate of one step's peak: the widest layer over all tokens of a step, then the sampler's logits.

    On a CPU attention gathers the keys and values of one sequence and layer and masks its scores; a GPU reads in place.
    """
    q_size = model.num_attention_heads * model.head_dim
    kv_size = model.num_key_value_heads * model.head_dim
    widest = max(3 * model.intermediate_size, 3 * q_size + 2 * kv_size)
    forward = scheduler.max_num_batched_tokens * (_ACTIVATION_COPIES * model.hidden_size + widest) * dtype_bytes
    if device == "cpu":
        longest = scheduler.max_model_len
        forward += longest * (2 * kv_size * dtype_bytes + 4 * min(scheduler.max_num_batched_tokens, longest))
    num_logit_rows = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    return forward + num_logit_rows * model.vocab_size * 4 * _LOGIT_COPIES


def _usable_bytes(device: DeviceMemory, request: MemoryRequest) -> int:
    """What we may take in all: the user's share of a GPU, and never more than is free."""
    if device.device == "cpu":
        return device.available
    return min(int(device.total * request.gpu_memory_utilization), device.available)


def _kv_budget(plan: MemoryPlan, usable: int, request: MemoryRequest) -> int:
    """Bytes for the cache: what the user says, else the rest of a GPU, else a modest share of the machine."""
    if request.kv_cache_memory_bytes is not None:
        return request.kv_cache_memory_bytes
    rest = usable - plan.fixed_bytes
    if plan.device.device == "cuda":
        return rest
    return min(DEFAULT_CPU_KV_BYTES, int(CPU_KV_SHARE * plan.device.available), rest)


def _check_cache(plan: MemoryPlan, usable: int) -> None:
    """The cache must fit into memory, and one request of the greatest length into the cache."""
    needed = blocks_for(plan.max_model_len, plan.block_size)
    room = (usable - plan.fixed_bytes) // plan.bytes_per_block
    if plan.num_blocks > room:
        raise ConfigError(
            f"A KV cache of {plan.num_blocks} blocks ({format_bytes(plan.kv_cache_bytes)}) does not fit into memory: "
            f"{room} blocks ({format_bytes(room * plan.bytes_per_block)}) would."
        )
    if plan.num_blocks >= needed:
        return
    message = (
        f"One request of --max-model-len {plan.max_model_len} tokens needs "
        f"{format_bytes(needed * plan.bytes_per_block)} of KV cache "
        f"and {format_bytes(plan.kv_cache_bytes)} are set aside"
    )
    fits = []
    if plan.num_blocks:
        fits.append(f"--max-model-len {plan.num_kv_tokens}")
    if needed <= room:
        fits.append(f"--kv-cache-memory-bytes {needed * plan.bytes_per_block}")
    raise ConfigError(f"{message}; {' or '.join(fits)} would do." if fits else f"{message}; no length would fit.")


def _utilization_hint(device: DeviceMemory) -> str:
    if device.device == "cpu":
        return ""
    return f" ({format_bytes(device.available)} of {format_bytes(device.total)} are free, see --gpu-memory-utilization)"


def format_bytes(num_bytes: int) -> str:
    """A size for people: 1536 -> "1.5 KiB"."""
    value, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{num_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
