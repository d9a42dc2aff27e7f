"""What serving a model will cost in memory, computed before a weight is read: prices before allocation.

Everything here is arithmetic on config.json, the safetensors headers and the device's figures. The worker measures what
it really took and reports it beside these numbers. What each part takes stands in `model_memory.py` and
`worker_memory.py`; here the device is divided.
"""

import math
from collections.abc import Callable

import msgspec

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import CacheConfig, SchedulerConfig, block_demand
from engine_core.config.errors import ConfigError
from engine_core.config.layer_groups import BlockDemand, LayerGroups, layer_groups
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig
from engine_core.config.model_memory import kv_bytes_per_token, packed_bytes, share_of_rank, weight_bytes
from engine_core.config.worker_memory import WorkerMemory, worker_memory

GIB = 2**30
DEFAULT_CPU_KV_BYTES = GIB
CPU_KV_SHARE = 0.4
"""On a CPU the cache takes at most this share of what is free: the machine has other things to do."""
_SMALL_STEP = (16, 512)
"""Requests and tokens of the step that is proposed where a larger one does not fit."""


class DoesNotFit(ConfigError):
    """The device is too small for the model, its cache or its longest request."""


class MemoryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the user said about memory; None or 0 where nothing was said."""

    block_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    cuda_graphs: bool = True


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan in bytes, and what it can serve. With tensor parallelism each rank's device has this plan."""

    device: DeviceMemory
    weight_bytes: int
    worker: WorkerMemory
    kv_bytes_per_token: int
    """Of all layers that see the token."""
    groups: LayerGroups
    demand: BlockDemand
    bytes_per_block: int
    block_size: int
    num_blocks: int
    max_model_len: int
    num_host_blocks: int = 0
    """Of the second tier, in the machine's memory."""
    tensor_parallel_size: int = 1

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def host_bytes(self) -> int:
        return self.num_host_blocks * self.bytes_per_block

    @property
    def fixed_bytes(self) -> int:
        """Everything but the cache."""
        return self.weight_bytes + sum(msgspec.structs.astuple(self.worker))

    @property
    def bytes_for_one(self) -> int:
        """With a cache that holds one request of `max_model_len` tokens and no more."""
        return self.fixed_bytes + self.demand.peak(self.max_model_len) * self.bytes_per_block

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the cache holds; where windows let go of tokens, in requests of `max_model_len`."""
        if len(self.groups) == self.demand.num_full == 1:
            return self.num_blocks * self.block_size
        return int(self.max_concurrency * self.max_model_len)

    @property
    def max_concurrency(self) -> float:
        """How many requests of `max_model_len` tokens fit at the same time."""
        return self.requests_of(self.max_model_len)

    def requests_of(self, num_tokens: int) -> float:
        """How many requests of that length fit at the same time: all but one of them at their end, where a window has
        few blocks, and one in the middle of its prompt, where it has most."""
        decoding = self.demand.at_end(num_tokens)
        return max(0, self.num_blocks - self.demand.peak(num_tokens) + decoding) / decoding

    def cache_config(
        self, dtype: str, enable_prefix_caching: bool, prefix_hash_key_file: str | None = None
    ) -> CacheConfig:
        return CacheConfig(
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            bytes_per_block=self.bytes_per_block,
            dtype=dtype,
            enable_prefix_caching=enable_prefix_caching,
            num_host_blocks=self.num_host_blocks,
            prefix_hash_key_file=prefix_hash_key_file,
        )


def make_memory_plan(
    model: ModelConfig,
    tensors: dict[str, TensorInfo] | None,
    dtype: str,
    scheduler: SchedulerConfig,
    device: DeviceMemory,
    request: MemoryRequest,
    tensor_parallel_size: int = 1,
) -> MemoryPlan:
    """Divides each rank's device. `tensors` is None where weights are made up (`--load-format dummy`).

    Raises `DoesNotFit` when the model, or one request of `max_model_len` tokens, does not fit, and says what would.
    """
    share = share_of_rank(model, tensor_parallel_size)

    def price(dtype: str = dtype, scheduler: SchedulerConfig = scheduler) -> MemoryPlan:
        """The plan of another choice, without a cache."""
        groups = layer_groups(model, scheduler.max_model_len)
        value_bytes = DTYPE_BYTES[dtype]
        return MemoryPlan(
            device=device,
            weight_bytes=weight_bytes(model, tensors, value_bytes, tensor_parallel_size)
            + packed_bytes(model, dtype, device.device),
            worker=worker_memory(
                share,
                groups,
                scheduler,
                value_bytes,
                device.device,
                request.block_size,
                request.cuda_graphs,
                tensor_parallel_size,
            ),
            kv_bytes_per_token=kv_bytes_per_token(share, value_bytes, model.num_hidden_layers),
            groups=groups,
            demand=block_demand(groups, request.block_size, scheduler),
            bytes_per_block=kv_bytes_per_token(share, value_bytes, groups.layers_per_block) * request.block_size,
            block_size=request.block_size,
            num_blocks=0,
            max_model_len=scheduler.max_model_len,
            tensor_parallel_size=tensor_parallel_size,
        )

    plan, usable = price(), _usable_bytes(device, request)
    alternatives = _alternatives(price, dtype, scheduler, usable)
    if plan.fixed_bytes >= usable:
        raise DoesNotFit(
            f"The model does not fit into memory: {format_bytes(plan.fixed_bytes)} are needed before any KV cache "
            f"(weights {format_bytes(plan.weight_bytes)}) and {format_bytes(usable)} can be used on this "
            f"{'CPU' if device.device == 'cpu' else 'GPU'}{_utilization_hint(device)}; "
            f"{' or '.join(alternatives) or f'a device with {format_bytes(plan.bytes_for_one)}'} would do."
        )
    num_blocks = _kv_budget(plan, usable, request) // plan.bytes_per_block
    if request.num_gpu_blocks_override is not None:
        num_blocks = request.num_gpu_blocks_override
    plan = msgspec.structs.replace(plan, num_blocks=num_blocks)
    _check_cache(plan, usable, alternatives)
    return plan


def with_host_tier(plan: MemoryPlan, gib: float, machine: DeviceMemory) -> MemoryPlan:
    """The plan with a second tier of the cache in the `machine`'s memory. Raises `ConfigError` when it does not fit."""
    num_bytes = int(gib * GIB)
    is_shared = plan.device.device == "cpu"
    free = machine.available - (plan.fixed_bytes + plan.kv_cache_bytes if is_shared else 0)
    if num_bytes > free:
        raise ConfigError(
            f"--kv-offload-gib {gib:g} does not fit into the machine's memory: "
            f"{format_bytes(max(0, free))} are free{' beside the rest of the plan' if is_shared else ''}."
        )
    num_blocks = num_bytes // plan.bytes_per_block
    if num_blocks == 0:
        raise ConfigError(
            f"--kv-offload-gib {gib:g} holds nothing: one block of the KV cache takes "
            f"{format_bytes(plan.bytes_per_block)}."
        )
    return msgspec.structs.replace(plan, num_host_blocks=num_blocks)


def _alternatives(price: Callable[..., MemoryPlan], dtype: str, scheduler: SchedulerConfig, usable: int) -> list[str]:
    """Flags with each of which one request of the greatest length would fit: half the bytes, more of the GPU, smaller
    steps."""
    found = []
    if DTYPE_BYTES[dtype] > 2 and price(dtype="bfloat16").bytes_for_one <= usable:
        found.append("--dtype bfloat16")
    plan = price()
    if plan.device.device == "cuda" and usable < plan.bytes_for_one <= plan.device.available:
        found.append(f"--gpu-memory-utilization {math.ceil(100 * plan.bytes_for_one / plan.device.total) / 100}")
    small = msgspec.structs.replace(
        scheduler,
        max_num_seqs=min(scheduler.max_num_seqs, _SMALL_STEP[0]),
        max_num_batched_tokens=min(scheduler.max_num_batched_tokens, _SMALL_STEP[1]),
        max_num_penalty_rows=min(scheduler.max_num_penalty_rows, _SMALL_STEP[0]),
    )
    if price(scheduler=small).bytes_for_one <= usable:
        found.append(
            f"--max-num-seqs {small.max_num_seqs} with --max-num-batched-tokens {small.max_num_batched_tokens}"
        )
    return found


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


def _check_cache(plan: MemoryPlan, usable: int, alternatives: list[str]) -> None:
    """The cache must fit into memory, and one request of the greatest length into the cache. The `alternatives` count
    where the cache already has all that is left."""
    needed = plan.demand.peak(plan.max_model_len)
    room = (usable - plan.fixed_bytes) // plan.bytes_per_block
    if plan.num_blocks > room:
        raise DoesNotFit(
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
    shorter = plan.demand.longest(plan.num_blocks, plan.max_model_len)
    if shorter:
        fits.append(f"--max-model-len {shorter}")
    if needed <= room:
        fits.append(f"--kv-cache-memory-bytes {needed * plan.bytes_per_block}")
    else:
        fits += alternatives
    fits = fits or [f"a device with {format_bytes(plan.bytes_for_one)}"]
    raise DoesNotFit(f"{message}; {' or '.join(fits)} would do.")


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
