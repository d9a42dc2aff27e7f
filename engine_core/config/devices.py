"""Which device there is and how much memory it has, found out without torch: the plan precedes its import."""

import os
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from engine_core.config.errors import ConfigError

SUPPORTED_DEVICES = ("cpu",)
"""Devices with kernels: those in the registry of `gpu_workers/operations.py`, which cannot be imported here."""

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory" / "memory.limit_in_bytes", _CGROUP / "memory" / "memory.usage_in_bytes"),
)


class DeviceMemory(msgspec.Struct, frozen=True):
    """What a device has, in bytes; `name` is for people."""

    device: Literal["cpu", "cuda"]
    name: str
    total: int
    available: int


def probe_device(device: str) -> DeviceMemory:
    """The memory of `device`: "cpu", "cuda", or "auto", which takes a GPU where there is one that has kernels here.

    Raises `ConfigError` when a GPU is asked for and none can be used.
    """
    if device == "cpu":
        return _cpu_memory()
    if device == "cuda":
        return _cuda_memory()
    try:
        return _cuda_memory()
    except ConfigError:
        memory = _cpu_memory()
        return msgspec.structs.replace(memory, name=memory.name + _unused_gpu())


def _unused_gpu() -> str:
    """What a device's name ends with where a GPU was found and left alone."""
    try:
        return f" ({_query_gpu().name} is not used: no kernels for GPUs yet)"
    except ConfigError:
        return ""


def _cpu_memory() -> DeviceMemory:
    """The machine's memory, or the control group's where that is less (a container)."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_file, usage_file in _LIMITS:
        try:
            limit, usage = int(limit_file.read_text()), int(usage_file.read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if limit < total:
            total, available = limit, min(available, max(0, limit - usage))
    return DeviceMemory("cpu", f"CPU, {psutil.cpu_count(logical=True)} threads", total, available)


def _cuda_memory() -> DeviceMemory:
    """The GPU's memory; refused before anything else where this version could not use it."""
    if "cuda" not in SUPPORTED_DEVICES:
        raise ConfigError("--device cuda cannot be served: this version has no kernels for GPUs yet; use --device cpu.")
    return _query_gpu()


def _query_gpu() -> DeviceMemory:
    """The first GPU that is visible to us, as the driver reports it."""
    try:
        import pynvml
    except ImportError:
        raise ConfigError(
            "--device cuda needs the package nvidia-ml-py to see the GPU's memory: pip install 'quire[gpu]'."
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ConfigError(f"--device cuda finds no NVIDIA driver: {error}.") from None
    try:
        handle = _visible_handle(pynvml)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = pynvml.nvmlDeviceGetName(handle)
        return DeviceMemory("cuda", name, int(memory.total), int(memory.free))
    except pynvml.NVMLError as error:
        raise ConfigError(f"--device cuda cannot use the GPU: {error}.") from None
    finally:
        pynvml.nvmlShutdown()


def _visible_handle(pynvml: Any) -> Any:
    """The handle of the GPU that torch will call cuda:0: the first one of CUDA_VISIBLE_DEVICES, an index or a UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = visible.split(",")[0].strip()
    if first in ("", "-1"):
        raise ConfigError("--device cuda finds no GPU: CUDA_VISIBLE_DEVICES hides all of them.")
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)
