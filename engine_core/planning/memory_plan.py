"""What serving a model will cost in memory, computed before a weight is read: prices before allocation.

Everything here is arithmetic on config.json, the safetensors headers and the device's figures. The worker measures what
it really took and reports it beside these numbers. What each part takes stands in `model_memory.py` and
`worker_memory.py`; here the device is divided.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from engine_core.config.checkpoint import TensorInfo
from engine_core.config.devices import DeviceMemory
from engine_core.config.engine_config import CacheConfig, SchedulerConfig, block_demand, step_capacities
from engine_core.config.errors import ConfigError
from engine_core.config.kv_layout import KVLayout
from engine_core.config.layer_groups import BlockDemand, LayerGroups, layer_groups
from engine_core.config.model_config import DTYPE_BYTES, ModelConfig
from engine_core.config.rank_share import share_of_rank
from engine_core.ipc.step import StepShape
from engine_core.planning.model_memory import packed_bytes, weight_bytes
from engine_core.planning.worker_memory import WorkerMemory, worker_memory

GIB = 2**30
DEFAULT_CPU_KV_BYTES = GIB
CPU_KV_SHARE = 0.4
"""On a CPU the cache takes at most this share of what is free: the machine has other things to do."""
_SMALL_STEP = (16, 512)
"""Requests and tokens of the step that is proposed where a larger one does not fit."""

_ANY_HOST_TIER = 2**31
"""Blocks of a host tier that bounds nothing of a plan's size: the tier is added when the device has been divided."""


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
    kv_layout: KVLayout
    groups: LayerGroups
    demand: BlockDemand
    num_blocks: int
    max_model_len: int
    num_host_blocks: int = 0
    """Of the second tier, in the machine's memory."""
    tensor_parallel_size: int = 1

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers that see the token."""
        return self.groups.num_layers * self.kv_layout.token_bytes

    @property
    def bytes_per_block(self) -> int:
        return self.kv_layout.block_bytes

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def host_bytes(self) -> int:
        return self.num_host_blocks * self.bytes_per_block

    @property
    def num_host_tokens(self) -> int:
        """Whole prompts' tokens that the second tier holds: a token takes a block's part in each group."""
        return self.num_host_blocks * self.kv_layout.block_size // len(self.groups)

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
            return self.num_blocks * self.kv_layout.block_size
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

    def cache_config(self, enable_prefix_caching: bool, prefix_hash_key_file: str | None = None) -> CacheConfig:
        return CacheConfig(
            block_size=self.kv_layout.block_size,
            num_blocks=self.num_blocks,
            dtype=self.kv_layout.dtype,
            enable_prefix_caching=enable_prefix_caching,
            num_host_blocks=self.num_host_blocks,
            prefix_hash_key_file=prefix_hash_key_file,
        )


@dataclass(frozen=True)
class Division:
    """What is to be served and by which device: the plan of that, whether or not it fits."""

    model: ModelConfig
    tensors: dict[str, TensorInfo] | None
    """None where weights are made up (`--load-format dummy`)."""
    dtype: str
    scheduler: SchedulerConfig
    device: DeviceMemory
    request: MemoryRequest
    tensor_parallel_size: int = 1

    @cached_property
    def plan(self) -> MemoryPlan:
        model, scheduler, request, num_ranks = self.model, self.scheduler, self.request, self.tensor_parallel_size
        share, groups = share_of_rank(model, num_ranks), layer_groups(model, scheduler.max_model_len)
        shape = StepShape(**step_capacities(model, scheduler, len(groups), request.block_size, _ANY_HOST_TIER))
        kind, value_bytes = self.device.device, DTYPE_BYTES[self.dtype]
        plan = MemoryPlan(
            device=self.device,
            weight_bytes=weight_bytes(model, self.tensors, value_bytes, num_ranks)
            + packed_bytes(model, self.dtype, kind),
            worker=worker_memory(share, groups, scheduler, shape, value_bytes, kind, request.cuda_graphs, num_ranks),
            kv_layout=KVLayout.of(share, groups.layers_per_block, request.block_size, self.dtype),
            groups=groups,
            demand=block_demand(groups, request.block_size, scheduler),
            num_blocks=0,
            max_model_len=scheduler.max_model_len,
            tensor_parallel_size=num_ranks,
        )
        num_blocks = request.num_gpu_blocks_override
        if num_blocks is None:
            num_blocks = max(0, self._kv_budget(self.usable_bytes - plan.fixed_bytes)) // plan.bytes_per_block
        return msgspec.structs.replace(plan, num_blocks=num_blocks)

    @property
    def usable_bytes(self) -> int:
        """What we may take in all: the user's share of a GPU, and never more than is free."""
        if self.device.device == "cpu":
            return self.device.available
        return min(int(self.device.total * self.request.gpu_memory_utilization), self.device.available)

    def _kv_budget(self, rest: int) -> int:
        """Bytes for the cache: what the user says, else the rest of a GPU, else a modest share of the machine."""
        if self.request.kv_cache_memory_bytes is not None:
            return self.request.kv_cache_memory_bytes
        if self.device.device == "cuda":
            return rest
        return min(DEFAULT_CPU_KV_BYTES, int(CPU_KV_SHARE * self.device.available), rest)

    @property
    def room(self) -> int:
        """Blocks that there is memory for."""
        return max(0, self.usable_bytes - self.plan.fixed_bytes) // self.plan.bytes_per_block

    @property
    def is_served(self) -> bool:
        """The cache must fit into memory, and one request of the greatest length into the cache."""
        return self.plan.demand.peak(self.plan.max_model_len) <= self.plan.num_blocks <= self.room

    @property
    def bytes_needed(self) -> int:
        """With the cache that the user wants, else one that holds one request of the greatest length."""
        if self.request.num_gpu_blocks_override is not None or self.request.kv_cache_memory_bytes is not None:
            return self.plan.fixed_bytes + self.plan.kv_cache_bytes
        return self.plan.bytes_for_one


def make_memory_plan(division: Division) -> MemoryPlan:
    """Divides each rank's device.

    Raises `DoesNotFit` when the model, or one request of `max_model_len` tokens, does not fit, and says what would.
    """
    if not division.is_served:
        raise DoesNotFit(_refusal(division))
    return division.plan


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


def _refusal(division: Division) -> str:
    """Why a plan does not fit, and what would."""
    plan, request, usable, room = division.plan, division.request, division.usable_bytes, division.room
    needed = plan.demand.peak(plan.max_model_len)
    others = list(_alternatives(division))
    remedies = []
    if plan.fixed_bytes >= usable:
        reason = (
            f"The model does not fit into memory: {format_bytes(plan.fixed_bytes)} are needed before any KV cache "
            f"(weights {format_bytes(plan.weight_bytes)}) and {format_bytes(usable)} can be used on this "
            f"{'CPU' if plan.device.device == 'cpu' else 'GPU'}{_utilization_hint(plan.device)}"
        )
    elif plan.num_blocks > room:
        reason = (
            f"A KV cache of {plan.num_blocks} blocks ({format_bytes(plan.kv_cache_bytes)}) does not fit into memory, "
            f"where {room} blocks ({format_bytes(room * plan.bytes_per_block)}) have room"
        )
        if needed <= room:
            remedies.append(_cache_flag(request, room, plan.bytes_per_block))
    else:
        reason = (
            f"One request of --max-model-len {plan.max_model_len} tokens needs "
            f"{format_bytes(needed * plan.bytes_per_block)} of KV cache "
            f"and {format_bytes(plan.kv_cache_bytes)} are set aside"
        )
        length = plan.demand.longest(plan.num_blocks, plan.max_model_len)
        shorter = msgspec.structs.replace(division.scheduler, max_model_len=length)
        if length and replace(division, scheduler=shorter).is_served:
            remedies.append(f"--max-model-len {length}")
        if needed <= room:
            remedies.append(_cache_flag(request, needed, plan.bytes_per_block))
            others.clear()
    remedies += others
    if not remedies:
        remedies += _larger_device(division)
    if not remedies:  # the cache that the user set aside is too small on any device
        free = msgspec.structs.replace(request, num_gpu_blocks_override=None, kv_cache_memory_bytes=None)
        remedies += [f"{remedy} and no cache size" for remedy in _larger_device(replace(division, request=free))]
    return f"{reason}; {' or '.join(remedies)} would do." if remedies else f"{reason}."


def _cache_flag(request: MemoryRequest, num_blocks: int, bytes_per_block: int) -> str:
    """By which the user sets aside so many blocks: the one that was given, else the plain one."""
    if request.num_gpu_blocks_override is not None:
        return f"--num-gpu-blocks-override {num_blocks}"
    return f"--kv-cache-memory-bytes {num_blocks * bytes_per_block}"


def _alternatives(division: Division) -> Iterator[str]:
    """Flags with each of which the plan would fit: half the bytes, more of the GPU, smaller steps."""
    scheduler, device, request = division.scheduler, division.device, division.request
    if DTYPE_BYTES[division.dtype] > 2 and replace(division, dtype="bfloat16").is_served:
        yield "--dtype bfloat16"
    if device.device == "cuda":
        share = math.ceil(100 * division.bytes_needed / device.total) / 100
        larger = msgspec.structs.replace(request, gpu_memory_utilization=share)
        if request.gpu_memory_utilization < share <= 1 and replace(division, request=larger).is_served:
            yield f"--gpu-memory-utilization {share}"
    small = msgspec.structs.replace(
        scheduler,
        max_num_seqs=min(scheduler.max_num_seqs, _SMALL_STEP[0]),
        max_num_batched_tokens=min(scheduler.max_num_batched_tokens, _SMALL_STEP[1]),
        max_num_penalty_rows=min(scheduler.max_num_penalty_rows, _SMALL_STEP[0]),
    )
    if replace(division, scheduler=small).is_served:
        yield f"--max-num-seqs {small.max_num_seqs} with --max-num-batched-tokens {small.max_num_batched_tokens}"


def _larger_device(division: Division) -> Iterator[str]:
    """The memory with which the plan would fit, all of it free."""
    needed = division.bytes_needed
    if division.device.device == "cuda":
        needed = math.ceil(needed / division.request.gpu_memory_utilization)
    else:
        needed = max(needed, math.ceil((needed - division.plan.fixed_bytes) / CPU_KV_SHARE))
    unit = 1024 ** ((needed.bit_length() - 1) // 10)
    size = math.ceil(math.ceil(10 * needed / unit) * unit / 10)  # what is written down has a digit behind the point
    device = msgspec.structs.replace(division.device, total=size, available=size)
    if replace(division, device=device).is_served:
        yield f"a device with {format_bytes(size)}"


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
