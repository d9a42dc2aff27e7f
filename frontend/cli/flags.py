"""Every setting of `quire serve`, `quire plan` and `LLM`, defined once: name, type, range, default, help.

`ServeArgs` is what a user said, checked field by field but not yet resolved against a model (that is resolve.py). The
command line, the YAML file and Python arguments all become one mapping of names to values and pass through `make_args`.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from engine_core.config.engine_config import PolicyName
from engine_core.config.errors import ConfigError
from frontend.cli.wording import refusal, shown
from frontend.cors import is_origin
from frontend.parsers.registry import REASONING_FORMATS, TOOL_FORMATS
from frontend.web_pages import is_host_name

Positive = Annotated[int, Meta(ge=1)]
MAX_SEED = 2**63 - 1

Settings = TypeVar("Settings")


class ServeArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings under the names of their flags. None: decided from the model and the device."""

    model: str | None = None
    served_model_name: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    max_model_len: Positive | None = None
    max_num_seqs: Annotated[int, Meta(ge=1, le=8192)] | None = None
    max_num_batched_tokens: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    max_num_partial_prefills: Positive = 1
    max_num_waiting: Positive = 1024
    max_requests_per_key: Positive | None = None
    max_num_penalty_rows: Positive = 256
    scheduling_policy: PolicyName = "fcfs"
    priority_ageing_rate: Annotated[float, Meta(ge=0, le=10**6)] = 0.1
    mask_timeout: Annotated[float, Meta(gt=0, le=86400)] = 10.0
    block_size: Annotated[int, Meta(ge=1, le=1024)] = 16
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    kv_cache_memory_bytes: Positive | None = None
    num_gpu_blocks_override: Positive | None = None
    enable_prefix_caching: bool = True
    share_prefix_cache: bool = False
    kv_offload_gib: Annotated[float, Meta(ge=0, le=2**20)] = 0.0
    prefix_hash_key_file: str | None = None
    enforce_eager: bool = False
    seed: Annotated[int, Meta(ge=-MAX_SEED, le=MAX_SEED)] = 0
    num_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    chat_template: str | None = None
    sanitize_control_tokens: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    generation_config: str = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    frontends: Annotated[int, Meta(ge=1, le=64)] = 1
    api_key: list[Annotated[str, Meta(min_length=1, max_length=4096)]] = []
    api_key_file: str | None = None
    allowed_origins: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []
    allowed_hosts: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []
    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 16 * 2**20
    strict_requests: bool = False
    trust_request_chat_template: bool = False
    response_store: Annotated[str, Meta(min_length=1)] | None = None
    drain_timeout: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    hang_timeout: Annotated[float, Meta(ge=0, le=86400)] | None = None
    trace: str | None = None


HELP = {
    "model": "a folder with config.json, tokenizer and safetensors, or a name on the Hugging Face hub",
    "served_model_name": "names under which the API serves the model (default: the folder's or the hub's name)",
    "device": "where the model runs; auto: a GPU where there is one",
    "dtype": "of weights and activations; auto: float32 on a CPU, the checkpoint's on a GPU",
    "load_format": "dummy: random weights, for tests and measurements",
    "max_model_len": "longest prompt plus output in tokens (default: what the model was made for)",
    "max_num_seqs": "most requests in one step (default: 256 on a CPU, 512 on a GPU)",
    "max_num_batched_tokens": "most tokens in one step (default: 2048 on a CPU, 8192 on a GPU)",
    "max_num_partial_prefills": "prompts that may be in the middle of being computed at once and share a step's tokens",
    "max_num_waiting": "requests that may wait; the next one is answered 429",
    "max_requests_per_key": "requests that an API key (without keys: a client address) may have at once, waiting and "
    "running; the next one is answered 429 (default: no bound)",
    "max_num_penalty_rows": "running requests that may use penalties at the same time",
    "scheduling_policy": "who is served first and preempted last: by arrival, by priority, or the API key that has "
    "had the least (without keys: the client address)",
    "priority_ageing_rate": "levels by which a priority improves with each second of waiting; 0: never",
    "mask_timeout": "seconds that a request may wait for what its grammar allows next before it fails",
    "block_size": "tokens in a block of the KV cache",
    "gpu_memory_utilization": "share of a GPU's memory that may be used",
    "kv_cache_memory_bytes": "size of the KV cache (2G, 512MiB, ...), instead of deriving it",
    "num_gpu_blocks_override": "blocks of the KV cache, instead of deriving them",
    "enable_prefix_caching": "reuse the KV cache of prompts that begin alike",
    "share_prefix_cache": "let API keys find each other's prompts in the prefix cache, whose speed tells what was "
    "asked before",
    "kv_offload_gib": "GiB of the machine's memory for blocks that the KV cache has no room for; 0: none",
    "prefix_hash_key_file": "file with 32 bytes as 64 hex digits, so that replicas give equal prefixes equal hashes",
    "enforce_eager": "no CUDA graphs",
    "seed": "for dummy weights; requests that bring none get a random one",
    "num_threads": "torch's threads in a CPU worker; 0: chosen from the number of cores",
    "chat_template": "file with a chat template, instead of the tokenizer's own",
    "sanitize_control_tokens": "control tokens in messages, tools and template variables are plain text to the model",
    "tool_call_parser": "format of the model's tool calls; auto: the one that its chat template speaks of",
    "reasoning_parser": "format of the model's reasoning; auto: the one that its chat template speaks of",
    "generation_config": "default sampling parameters: auto (the model's), vllm (none), or a folder",
    "host": "address to listen on",
    "port": "port to listen on; 0: any free one",
    "frontends": "HTTP processes",
    "api_key": "keys of which a request must have one (but for /health and /ready); other users of this machine see "
    "them in the command line, so prefer --api-key-file",
    "api_key_file": "file with such keys, one a line",
    "allowed_origins": "origins of web pages that may use this server from a browser (https://chat.example), or '*' "
    "for all (default: none)",
    "allowed_hosts": "names that requests may have in their Host header, beside localhost and the like, or '*' for all "
    "(default: none on a loopback address, else all)",
    "max_body_bytes": "longest request body",
    "strict_requests": "refuse unknown fields in requests instead of ignoring them",
    "trust_request_chat_template": "let requests bring a chat template of their own, which may use any amount of time",
    "response_store": "file of the stored responses of /v1/responses, which keeps them over restarts (default: none "
    "stays when the server ends)",
    "drain_timeout": "seconds for running requests to finish after SIGTERM",
    "hang_timeout": "seconds without a sign of life after which a process hangs, which ends the server; 0: never "
    "(default: 60, and on a CPU what its largest step may take)",
    "trace": "file for a timeline of steps and requests in Chrome's trace format",
}
GROUPS = {
    "Model": "served_model_name device dtype load_format max_model_len chat_template "
    "sanitize_control_tokens tool_call_parser reasoning_parser generation_config seed",
    "Scheduling": "max_num_seqs max_num_batched_tokens max_num_partial_prefills max_num_waiting "
    "max_num_penalty_rows scheduling_policy priority_ageing_rate mask_timeout",
    "Memory": "block_size gpu_memory_utilization kv_cache_memory_bytes num_gpu_blocks_override enable_prefix_caching "
    "prefix_hash_key_file kv_offload_gib",
    "Execution": "enforce_eager num_threads trace",
    "Server": "host port frontends api_key api_key_file max_requests_per_key share_prefix_cache allowed_origins "
    "allowed_hosts max_body_bytes strict_requests trust_request_chat_template response_store drain_timeout "
    "hang_timeout",
}
CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "load_format": ("auto", "safetensors", "dummy"),
    "scheduling_policy": get_args(PolicyName),
    "tool_call_parser": ("auto", "none", *TOOL_FORMATS),
    "reasoning_parser": ("auto", "none", *REASONING_FORMATS),
}
SIZES = ("max_model_len", "max_num_batched_tokens", "kv_cache_memory_bytes", "max_body_bytes")
"""Whole numbers that may be written with a unit: 8k is 8000, 8K and 8KiB are 8192."""
SWITCHES = (
    "enforce_eager",
    "sanitize_control_tokens",
    "share_prefix_cache",
    "strict_requests",
    "trust_request_chat_template",
)
LISTS = ("served_model_name", "api_key", "allowed_origins", "allowed_hosts")
"""Given as several words, or as one text in the YAML file."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgKMGT]?)(i?B)?")


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every setting; one that is not given leaves no attribute, so that the YAML file can fill it."""
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=HELP["model"])
    parser.add_argument("--model", default=argparse.SUPPRESS, help="the same, as a flag")
    parser.add_argument("--default-model", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help="settings by flag name")
    defaults = ServeArgs()
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            _add_flag(group, name, getattr(defaults, name))


def _add_flag(group: argparse._ArgumentGroup, name: str, default: object) -> None:
    text = HELP[name]
    if name in SWITCHES:
        group.add_argument(flag_of(name), action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if isinstance(default, bool):
        group.add_argument(
            flag_of(name),
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text + " (default: on)",
        )
        return
    if default is not None and default != []:
        text += f" (default: {default})"
    group.add_argument(
        flag_of(name),
        default=argparse.SUPPRESS,
        nargs="+" if name in LISTS else None,
        metavar=_metavar(name, default),
        help=text,
    )


def _metavar(name: str, default: object) -> str:
    if name in CHOICES:
        return f"{{{','.join(CHOICES[name])}}}"  # which `make_args` checks, for all sources alike
    if name in ("chat_template", "trace", "response_store", "prefix_hash_key_file", "api_key_file"):
        return "FILE"
    if name in ("served_model_name", "host", "api_key"):
        return name.rsplit("_", 1)[-1].upper()
    if name in ("allowed_origins", "allowed_hosts"):
        return name.removeprefix("allowed_").removesuffix("s").upper()
    return "AUTO|VLLM|FOLDER".lower() if name == "generation_config" else "X" if isinstance(default, float) else "N"


def make_args(values: Mapping[str, Any], where: str = "") -> ServeArgs:
    """Settings from any of the three sources. Raises `ConfigError` that names the setting, and `where` it stands."""
    values = dict(values)
    for name in set(values) - set(ServeArgs.__struct_fields__):
        raise ConfigError(f"{where}There is no setting {name!r}.")
    for name in SIZES:
        if isinstance(values.get(name), str):
            values[name] = parse_size(name, values[name], where)
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            raise ConfigError(f"{where}{flag_of(name)}: {shown(values[name])} is not one of {', '.join(choices)}.")
    for name in LISTS:
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    args = convert_settings(values, ServeArgs, where)
    for origin in args.allowed_origins:
        if not is_origin(origin):
            raise ConfigError(
                f"{where}--allowed-origins: {shown(origin)} is not what a browser sends as an origin: scheme://host or "
                f"scheme://host:port in lower case, without a path and without the scheme's own port, or '*' for all."
            )
    for host in args.allowed_hosts:
        if not is_host_name(host):
            raise ConfigError(
                f"{where}--allowed-hosts: {shown(host)} is not the name of a host in lower case, without scheme and "
                f"port, or '*' for all."
            )
    return args


def convert_settings(values: Mapping[str, Any], kind: type[Settings], where: str = "") -> Settings:
    """Typed and within bounds. Raises `ConfigError` that names the flag, and `where` it stands."""
    try:
        # Not strict: the command line brings numbers as strings.
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        _, _, path = str(error).partition(" - at `$.")
        name = path.split("[")[0].rstrip("`")
        raise ConfigError(f"{where}{flag_of(name)}: {refusal(values, kind, name)}.") from None


def parse_size(name: str, text: str, where: str = "") -> int:
    """A whole number with a unit: "8192", "8k" (8000), "8K", "8KiB" (8192), "1.5G"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        allowed = "a whole number of up to 18 digits or a size such as 8k, 8K or 2GiB"
        raise ConfigError(f"{where}{flag_of(name)}: {shown(text)} is not {allowed}.")
    number, unit, suffix = match.groups()
    if suffix and unit.islower():  # 8kB is 8000 and 8kiB is a common slip for 8KiB
        unit = unit.upper() if suffix == "iB" else unit
    return int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]
