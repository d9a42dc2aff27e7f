"""From what the user said to what is served: `ServeArgs` and the model's own files become the frozen `ServeConfig`.

Done once, by `quire serve` or `LLM`; the child processes read the result and decide nothing again. Nothing is allocated
here, and everything that can be refused is refused here.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec

from engine_core.config.checkpoint import TensorInfo, read_checkpoint
from engine_core.config.config_keys import unknown_keys
from engine_core.config.consistency import with_checkpoint
from engine_core.config.devices import DeviceMemory, probe_device
from engine_core.config.engine_config import (
    EngineConfig,
    FrontendConfig,
    ParallelConfig,
    SchedulerConfig,
    ServeConfig,
)
from engine_core.config.errors import ConfigError
from engine_core.config.hash_key import read_hash_key
from engine_core.config.model_config import ModelConfig, load_model_config, read_json_object
from engine_core.ipc.sampling_params import MAX_LOGPROBS
from engine_core.planning.hang_timeout import default_hang_timeout
from engine_core.planning.memory_plan import Division, MemoryPlan, MemoryRequest, make_memory_plan, with_host_tier
from frontend.api_keys import digest_of
from frontend.chat_template import load_chat_template
from frontend.cli.flags import ServeArgs
from frontend.cli.generation_config import default_sampling, not_applied
from frontend.cli.hub import has_weights, resolve_model_folder
from frontend.cli.interpreter import check_interpreter
from frontend.eos_token import find_eos_token
from frontend.parsers.registry import UnknownFormat, resolve_formats
from frontend.text.tokenizer_files import TokenizerError

DEFAULT_BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192}
DEFAULT_SEQS = {"cpu": 256, "cuda": 512}
MAX_TEMPLATE_BYTES = 2**20
MAX_KEY_FILE_BYTES = 2**20
MIN_HANG_TIMEOUT = 3.0
"""Processes give signs of life once a second."""


class Resolved(msgspec.Struct, frozen=True):
    """Everything but the run directory, which belongs to a start and not to a configuration."""

    engine: EngineConfig
    frontend: FrontendConfig
    plan: MemoryPlan
    ignored: dict[str, tuple[str, ...]] = {}
    """Keys of the model's files that say something and have no effect here, by file."""

    def serve_config(self, run_dir: str, port: int) -> ServeConfig:
        """What the children read; `port` is the one that was really bound."""
        return ServeConfig(
            engine=self.engine, frontend=msgspec.structs.replace(self.frontend, port=port), run_dir=run_dir
        )


class ModelFiles(msgspec.Struct, frozen=True):
    """What the files of a model say before a weight is read."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo] | None
    """None where weights are made up, or not here."""
    ignored: dict[str, tuple[str, ...]] = {}
    """As in `Resolved`."""


def resolve(args: ServeArgs) -> Resolved:
    """Raises `ConfigError` with one sentence for whatever cannot be served."""
    check_interpreter()
    files = read_model(args)
    engine, plan = resolve_engine(args, files, probe_device(args.device))
    hang_timeout = _resolve_hang_timeout(args, engine)
    return Resolved(engine, _resolve_frontend(args, files.folder, engine, hang_timeout), plan, files.ignored)


def read_model(args: ServeArgs, with_weights: bool = True) -> ModelFiles:
    """Without weights a model of the hub need not be here: config.json has its shape."""
    if args.model is None or not args.model.strip():
        raise ConfigError("No model was named; MODEL is a folder or a Hugging Face hub name.")
    folder = resolve_model_folder(args.model, with_weights)
    model = load_model_config(folder)
    tensors = None
    is_partial = not with_weights and not _is_folder(args.model) and not has_weights(folder)
    if args.load_format != "dummy" and not is_partial:
        tensors = read_checkpoint(folder)
        model = with_checkpoint(model, tensors)
    return ModelFiles(folder, _with_tokenizer(model), tensors, _ignored_keys(args, model))


def _with_tokenizer(model: ModelConfig) -> ModelConfig:
    """What ends an answer is what any of the model's files names; an id beyond the vocabulary can never be sampled."""
    try:
        eos = find_eos_token(model.path)
    except TokenizerError as error:
        raise ConfigError(str(error)) from None
    if eos is None or eos >= model.vocab_size or eos in model.eos_token_ids:
        return model
    return msgspec.structs.replace(model, eos_token_ids=(*model.eos_token_ids, eos))


def _ignored_keys(args: ServeArgs, model: ModelConfig) -> dict[str, tuple[str, ...]]:
    folder = Path(model.path)
    found = {"config.json": unknown_keys(read_json_object(folder / "config.json"), model.architecture)}
    found["generation_config.json"] = not_applied(args.generation_config, folder)
    return {name: keys for name, keys in found.items() if keys}


def resolve_engine(
    args: ServeArgs,
    files: ModelFiles,
    device: DeviceMemory,
    tensor_parallel_size: int = 1,
    machine: DeviceMemory | None = None,
) -> tuple[EngineConfig, MemoryPlan]:
    """The engine's part, with the plan of each rank's device. `machine`: what is around the device; None: this one."""
    if args.num_gpu_blocks_override is not None and args.kv_cache_memory_bytes is not None:
        raise ConfigError(
            "--num-gpu-blocks-override and --kv-cache-memory-bytes both set the size of the KV cache: give one of them."
        )
    model = files.config
    dtype = _resolve_dtype(args, model, device)
    scheduler = _resolve_scheduler(args, model, device)
    request = MemoryRequest(
        block_size=args.block_size,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        num_gpu_blocks_override=args.num_gpu_blocks_override,
        cuda_graphs=not args.enforce_eager,
    )
    plan = make_memory_plan(Division(model, files.tensors, dtype, scheduler, device, request, tensor_parallel_size))
    if args.kv_offload_gib:
        plan = _add_host_tier(args, plan, machine)
    engine = EngineConfig(
        model=model,
        cache=plan.cache_config(args.enable_prefix_caching, _hash_key_file(args.prefix_hash_key_file)),
        scheduler=scheduler,
        parallel=ParallelConfig(tensor_parallel_size=tensor_parallel_size),
        device=device.device,
        dtype=dtype,
        load_format="dummy" if args.load_format == "dummy" else "safetensors",
        seed=args.seed,
        enforce_eager=args.enforce_eager,
        num_threads=args.num_threads,
        trace_file=None if args.trace is None else _trace_file(args.trace),
    )
    return engine, plan


def default_model_name(args: ServeArgs, folder: Path) -> str:
    """What a model is called where nobody said."""
    assert args.model is not None
    return folder.name if _is_folder(args.model) else args.model


def _is_folder(model: str) -> bool:
    return Path(model).expanduser().is_dir()


def _resolve_dtype(args: ServeArgs, model: ModelConfig, device: DeviceMemory) -> str:
    """float32 on a CPU, where it is the fast one; on a GPU the checkpoint's, and bfloat16 for float32 checkpoints."""
    if args.dtype != "auto":
        return args.dtype
    if device.device == "cpu":
        return "float32"
    return "bfloat16" if model.dtype in (None, "float32") else model.dtype


def _resolve_scheduler(args: ServeArgs, model: ModelConfig, device: DeviceMemory) -> SchedulerConfig:
    max_model_len = args.max_model_len or model.max_position_embeddings
    if max_model_len > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the {model.max_position_embeddings} positions "
            f"that the model was made for."
        )
    max_num_batched_tokens = args.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device.device]
    max_num_seqs = args.max_num_seqs or min(DEFAULT_SEQS[device.device], max_num_batched_tokens)
    if max_num_batched_tokens < max_num_seqs:
        if args.max_num_batched_tokens is not None:
            raise ConfigError(
                f"--max-num-batched-tokens {max_num_batched_tokens} is less than --max-num-seqs {max_num_seqs}: "
                f"every running request needs room for one token in a step."
            )
        max_num_batched_tokens = max_num_seqs
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        max_num_waiting=args.max_num_waiting,
        max_requests_per_share=args.max_requests_per_key,
        max_num_penalty_rows=min(args.max_num_penalty_rows, max_num_seqs),
        max_num_partial_prefills=args.max_num_partial_prefills,
        scheduling_policy=args.scheduling_policy,
        priority_ageing_rate=args.priority_ageing_rate,
        mask_timeout=args.mask_timeout,
    )


def _add_host_tier(args: ServeArgs, plan: MemoryPlan, machine: DeviceMemory | None) -> MemoryPlan:
    if not args.enable_prefix_caching:
        raise ConfigError("--kv-offload-gib keeps blocks for prompts that begin alike: it needs prefix caching.")
    if machine is None:
        machine = plan.device if plan.device.device == "cpu" else probe_device("cpu")
    return with_host_tier(plan, args.kv_offload_gib, machine)


def _resolve_hang_timeout(args: ServeArgs, engine: EngineConfig) -> float:
    if args.hang_timeout is None:
        return default_hang_timeout(engine.model, engine.scheduler, engine.device)
    if 0 < args.hang_timeout < MIN_HANG_TIMEOUT:
        raise ConfigError(
            f"--hang-timeout {args.hang_timeout:g} is too short for processes that give a sign of life once a second: "
            f"at least {MIN_HANG_TIMEOUT:g}, or 0 for never."
        )
    return args.hang_timeout


def _resolve_frontend(args: ServeArgs, folder: Path, engine: EngineConfig, hang_timeout: float) -> FrontendConfig:
    chat_template = None
    if args.chat_template is not None:
        file = Path(args.chat_template).expanduser()
        chat_template = _read_text("--chat-template", file, MAX_TEMPLATE_BYTES)
    try:
        # Compiled and dropped: what every frontend would refuse is refused before weights are loaded.
        template = load_chat_template(str(folder), chat_template, special_tokens={})
    except TokenizerError as error:
        raise ConfigError(str(error)) from None
    try:
        tool_format, reasoning_format = resolve_formats(args.tool_call_parser, args.reasoning_parser, template.source)
    except UnknownFormat as error:
        raise ConfigError(str(error)) from None
    digests = tuple(dict.fromkeys(digest_of(key) for key in _api_keys(args)))
    return FrontendConfig(
        host=args.host,
        port=args.port,
        num_frontends=args.frontends,
        served_model_names=tuple(args.served_model_name) or (default_model_name(args, folder),),
        model_path=str(folder),
        chat_template=chat_template,
        sanitize_control_tokens=args.sanitize_control_tokens,
        tool_call_parser=tool_format,
        reasoning_parser=reasoning_format,
        default_sampling=default_sampling(args.generation_config, folder),
        max_body_bytes=args.max_body_bytes,
        strict_requests=args.strict_requests,
        drain_timeout=args.drain_timeout,
        hang_timeout=hang_timeout,
        max_model_len=engine.scheduler.max_model_len,
        max_logprobs=MAX_LOGPROBS,
        eos_token_ids=engine.model.eos_token_ids,
        api_key_digests=digests,
        tells_apart=_what_tells_apart(args, len(digests)),
        separates_prefixes=len(digests) > 1 and not args.share_prefix_cache,
        allowed_origins=tuple(args.allowed_origins),
        allowed_hosts=tuple(args.allowed_hosts),
        trust_request_chat_template=args.trust_request_chat_template,
        response_store=None if args.response_store is None else str(Path(args.response_store).expanduser().absolute()),
    )


def _what_tells_apart(args: ServeArgs, num_keys: int) -> Literal["nobody", "keys", "addresses"]:
    """What a client invents tells nobody apart: without configured keys only its address can."""
    is_limited = args.max_requests_per_key is not None
    if num_keys:
        return "keys" if num_keys > 1 or is_limited else "nobody"
    return "addresses" if is_limited or args.scheduling_policy == "fair" else "nobody"


def _api_keys(args: ServeArgs) -> list[str]:
    """Those of the command line and those of the file. A file without a key is refused: it would open the server."""
    keys = [key.strip() for key in args.api_key]
    if not all(keys):
        raise ConfigError("--api-key must not be blank.")
    if args.api_key_file is not None:
        file = Path(args.api_key_file).expanduser()
        found = [line.strip() for line in _read_text("--api-key-file", file, MAX_KEY_FILE_BYTES).splitlines()]
        found = [key for key in found if key]
        if not found:
            raise ConfigError(f"--api-key-file {file} has no key in it.")
        keys += found
    return keys


def _read_text(flag: str, file: Path, max_bytes: int) -> str:
    try:
        if file.stat().st_size > max_bytes:
            raise ConfigError(f"{flag} {file} is larger than {max_bytes} bytes.")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {file} is not UTF-8 text.") from None


def _hash_key_file(given: str | None) -> str | None:
    """The engine core reads it again: a key stays in its own file."""
    if given is None:
        return None
    file = Path(given).expanduser().absolute()
    read_hash_key(file)
    return str(file)


def _trace_file(given: str) -> str:
    """Written at the end of a run, so it is tried at the start; nothing is created yet."""
    file = Path(given).expanduser().absolute()
    if file.is_dir():
        raise ConfigError(f"--trace {given} is a folder.")
    if not file.parent.is_dir():
        raise ConfigError(f"--trace {given}: there is no folder {file.parent}.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"--trace {given} cannot be written.")
    return str(file)
