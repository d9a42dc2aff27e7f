"""`quire plan MODEL`: what serving a model would take, here or on GPUs that are not here. Starts nothing.

Everything comes from config.json and the safetensors headers; no weight is read and no torch is loaded.
"""

import argparse
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine_core.config.devices import GPU_MEMORY_MIB, DeviceMemory, absent_gpu, probe_device
from engine_core.config.engine_config import EngineConfig
from engine_core.config.errors import ConfigError
from engine_core.config.rank_share import fitting_rank_counts, share_of_rank
from engine_core.planning.memory_plan import GIB, DoesNotFit, MemoryPlan
from engine_core.planning.model_memory import num_parameters
from frontend.cli.flags import ServeArgs, convert_settings, parse_size
from frontend.cli.report import headline, memory_lines
from frontend.cli.resolve import ModelFiles, default_model_name, read_model, resolve_engine

_DEFAULT_LENGTHS = (1024, 8192)
"""Beside the longest that the model serves."""
_MOST_RANKS_TRIED = 16
_UNKNOWN_MACHINE = DeviceMemory("cpu", "around a GPU that is not here", 2**60, 2**60)
"""Of any size: nobody said how much memory it has."""


class PlanArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What `quire plan` takes beside the settings of `quire serve`."""

    tensor_parallel_size: Annotated[int, Meta(ge=1, le=1024)] = 1
    gpu: str | None = None
    gpu_memory_gib: Annotated[float, Meta(gt=0, le=2**20)] | None = None
    at_length: list[Annotated[int, Meta(ge=1, lt=2**31)]] = []
    json: bool = False


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `quire serve` does not have."""
    group = parser.add_argument_group("Plan")
    add, absent = group.add_argument, argparse.SUPPRESS
    add("--tensor-parallel-size", default=absent, metavar="N", help="GPUs that share the model (default: 1)")
    add("--gpu", default=absent, metavar="NAME", help=f"a GPU that need not be here: {', '.join(GPU_MEMORY_MIB)}")
    add("--gpu-memory-gib", default=absent, metavar="X", help="a GPU that need not be here, by its memory")
    add(
        "--at-length",
        nargs="+",
        default=absent,
        metavar="N",
        help="largest batch of requests of so many tokens (2K, ...)",
    )
    add("--json", action="store_true", default=absent, help="print JSON")


def take_plan_args(namespace: argparse.Namespace) -> PlanArgs:
    """Takes the plan's own flags out of a parsed command line. Raises `ConfigError` that names the wrong one."""
    given = {name: vars(namespace).pop(name) for name in PlanArgs.__struct_fields__ if name in namespace}
    if "at_length" in given:
        given["at_length"] = [parse_size("at_length", text) for text in given["at_length"]]
    return convert_settings(given, PlanArgs)


def run(args: ServeArgs, plan_args: PlanArgs) -> int:
    device = _device(args, plan_args)
    if device.device == "cpu" and plan_args.tensor_parallel_size > 1:
        raise ConfigError("--tensor-parallel-size is for GPUs; --gpu plans for some that are not here.")
    machine = _UNKNOWN_MACHINE if _is_described(plan_args) else None
    files = read_model(args, with_weights=False)
    try:
        engine, plan = resolve_engine(args, files, device, plan_args.tensor_parallel_size, machine)
    except DoesNotFit as error:
        others = " or ".join(_what_would_fit(args, files, device, plan_args.tensor_parallel_size, machine))
        raise ConfigError(f"{error} So would {others}." if others else str(error)) from None
    lengths = plan_args.at_length or sorted({*_DEFAULT_LENGTHS, plan.max_model_len})
    longest = plan.max_model_len
    if plan_args.at_length and max(lengths) > longest:
        raise ConfigError(f"--at-length {max(lengths)} is more than the {longest} tokens of --max-model-len.")
    name = (*args.served_model_name, default_model_name(args, files.folder))[0]
    batches = {length: int(plan.requests_of(length)) for length in lengths if length <= longest}
    if plan_args.json:
        print(msgspec.json.format(msgspec.json.encode(_as_json(name, engine, plan, batches))).decode())
    else:
        print(_as_text(name, files, engine, plan, batches))
    return 0


def _is_described(plan_args: PlanArgs) -> bool:
    return plan_args.gpu is not None or plan_args.gpu_memory_gib is not None


def _device(args: ServeArgs, plan_args: PlanArgs) -> DeviceMemory:
    """The GPU that was described, or what is here."""
    if not _is_described(plan_args):
        return probe_device(args.device)
    if plan_args.gpu is not None and plan_args.gpu_memory_gib is not None:
        raise ConfigError("--gpu and --gpu-memory-gib describe the same GPU; one of them is enough.")
    if args.device == "cpu":
        raise ConfigError("--device cpu has no GPU to describe.")
    if plan_args.gpu is not None:
        return absent_gpu(plan_args.gpu)
    assert plan_args.gpu_memory_gib is not None
    size = int(plan_args.gpu_memory_gib * GIB)
    return DeviceMemory("cuda", f"a GPU of {plan_args.gpu_memory_gib:g} GiB", size, size)


def _what_would_fit(
    args: ServeArgs, files: ModelFiles, device: DeviceMemory, num_ranks: int, machine: DeviceMemory | None
) -> Iterator[str]:
    """The smallest larger group of such devices, and the smallest larger GPU."""

    def fits(device: DeviceMemory, num_ranks: int, machine: DeviceMemory | None) -> bool:
        try:
            resolve_engine(args, files, device, num_ranks, machine)
        except ConfigError:  # also for a host tier that is too large for this machine
            return False
        return True

    if device.device == "cuda":
        larger_groups = fitting_rank_counts(files.config, _MOST_RANKS_TRIED)
        more = (size for size in larger_groups if size > num_ranks and fits(device, size, machine))
        if (size := next(more, None)) is not None:
            yield f"--tensor-parallel-size {size}"
    larger_gpus = (absent_gpu(name) for name, mib in GPU_MEMORY_MIB.items() if mib * 2**20 > device.total)
    if (gpu := next((gpu for gpu in larger_gpus if fits(gpu, num_ranks, _UNKNOWN_MACHINE)), None)) is not None:
        yield f"--gpu {gpu.name}"


def _as_text(name: str, files: ModelFiles, engine: EngineConfig, plan: MemoryPlan, batches: dict[int, int]) -> str:
    lines = [headline(name, engine, plan), ""]
    lines += [f"  {title:<15}{value}" for title, value in _settings(files, engine)]
    lines += ["", *memory_lines(plan)]
    most = engine.scheduler.max_num_seqs
    for length, batch in batches.items():
        capped = f", of which --max-num-seqs runs {most:,} at once" if batch > most else ""
        lines.append(f"  {'Largest batch':<15}{batch:,} requests of {length:,} tokens{capped}")
    return "\n".join([*lines, ""])


def _settings(files: ModelFiles, engine: EngineConfig) -> Iterator[tuple[str, str]]:
    scheduler = engine.scheduler
    yield "model", engine.model.path
    if files.tensors is None and engine.load_format != "dummy":
        yield "weights", "not here: counted from config.json"
    yield "context", f"{scheduler.max_model_len:,} tokens (model: {engine.model.max_position_embeddings:,})"
    yield "per step", f"{scheduler.max_num_seqs:,} requests, {scheduler.max_num_batched_tokens:,} tokens"
    num_ranks = engine.parallel.tensor_parallel_size
    if num_ranks > 1:
        share = share_of_rank(engine.model, num_ranks)
        yield "each rank", f"{share.num_attention_heads} heads, {share.num_key_value_heads} KV heads"


def _as_json(name: str, engine: EngineConfig, plan: MemoryPlan, batches: dict[int, int]) -> dict[str, Any]:
    """Bytes are those of one device."""
    return {
        "model": name,
        "architecture": engine.model.architecture,
        "num_parameters": num_parameters(engine.model),
        "dtype": engine.dtype,
        "device": plan.device,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "max_model_len": plan.max_model_len,
        "max_num_seqs": engine.scheduler.max_num_seqs,
        "max_num_batched_tokens": engine.scheduler.max_num_batched_tokens,
        "weight_bytes": plan.weight_bytes,
        **msgspec.structs.asdict(plan.worker),
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "total_bytes": plan.fixed_bytes + plan.kv_cache_bytes,
        "block_size": plan.kv_layout.block_size,
        "num_blocks": plan.num_blocks,
        "num_kv_tokens": plan.num_kv_tokens,
        "layer_groups": [
            {"layers": group.layers, "sliding_window": group.sliding_window or None} for group in plan.groups.groups
        ],
        "host_tier": {
            "bytes": plan.host_bytes,
            "num_blocks": plan.num_host_blocks,
            "num_tokens": plan.num_host_tokens,
        },
        "largest_batch": [{"length": length, "num_requests": batch} for length, batch in batches.items()],
    }
