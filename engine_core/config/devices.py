"""Which device there is and how much memory it has, found out without torch: the plan precedes its import.

A GPU is taken only where everything fits together: driver, the CUDA that torch was built with, the GPU's generation.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from engine_core.config.errors import ConfigError

MIN_COMPUTE_CAPABILITY = (8, 0)
"""Of the kernels: from Ampere on a GPU multiplies bfloat16 matrices and copies to shared memory asynchronously."""

GPU_MEMORY_MIB = {
    "A10": 23028,
    "L4": 23034,
    "RTX4090": 24564,
    "A100-40": 40960,
    "L40S": 46068,
    "H100": 81559,
    "A100": 81920,
    "H200": 143771,
    "B200": 183359,
}
"""Memory as their drivers tell it, from small to large, for plans of GPUs that are not here."""

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


class UnusableGpu(ConfigError):
    """No GPU can be used. `reason` is the part of the sentence that says why."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"--device cuda cannot be used: {reason}; {remedy}.")
        self.reason = reason


def absent_gpu(name: str) -> DeviceMemory:
    """An empty GPU of a known type. Raises `ConfigError` that names those."""
    size = GPU_MEMORY_MIB.get(name.upper())
    if size is None:
        raise ConfigError(f"There is no GPU type {name[:40]!r} here; known are {', '.join(GPU_MEMORY_MIB)}.")
    return DeviceMemory("cuda", name.upper(), size * 2**20, size * 2**20)


def probe_device(device: str) -> DeviceMemory:
    """The memory of `device`: "cpu", "cuda", or "auto", which takes a GPU where one can be used and else a CPU, whose
    name then says why.

    Raises `ConfigError` when a GPU is asked for and none can be used.
    """
    if device == "cpu":
        return _cpu_memory()
    if device == "cuda":
        return _cuda_memory()
    try:
        return _cuda_memory()
    except UnusableGpu as error:
        memory = _cpu_memory()
        return msgspec.structs.replace(memory, name=f"{memory.name} (no GPU: {error.reason})")


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
    """The memory of the first GPU that is visible to us. Raises `UnusableGpu`."""
    try:
        import pynvml
    except ImportError:
        raise UnusableGpu(
            "the package nvidia-ml-py, which tells its memory, is not installed", "pip install 'quire[gpu]' would do"
        ) from None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        raise UnusableGpu("there is no NVIDIA driver", "--device cpu needs none") from None
    except pynvml.NVMLError as error:
        raise UnusableGpu(f"the NVIDIA driver fails ({error})", "--device cpu needs none") from None
    try:
        handle = _visible_handle(pynvml)
        name = pynvml.nvmlDeviceGetName(handle)
        _check_cuda(pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000)
        _check_generation(name, pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return DeviceMemory("cuda", name, int(memory.total), int(memory.free))
    except pynvml.NVMLError as error:
        reason = f"the driver does not give us the GPU ({error})"
        raise UnusableGpu(reason, "nvidia-smi may know more, --device cpu would do") from None
    finally:
        pynvml.nvmlShutdown()


def _check_cuda(driver_major: int) -> None:
    """Minor versions of CUDA run on each other's drivers, a newer major version does not run on an older one's."""
    version = _torch_cuda_version()
    build = f"a torch built for CUDA {driver_major}"
    if version is None:
        raise UnusableGpu("torch was built without CUDA", f"{build}, or --device cpu, would do")
    if driver_major < int(version.split(".")[0]):
        raise UnusableGpu(
            f"torch was built for CUDA {version} and the driver is for CUDA {driver_major}",
            f"a newer driver, {build}, or --device cpu would do",
        )


def _check_generation(name: str, capability: tuple[int, int]) -> None:
    if tuple(capability) < MIN_COMPUTE_CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, MIN_COMPUTE_CAPABILITY))
        raise UnusableGpu(
            f"{name} has compute capability {have} and the kernels need {need}",
            "an Ampere, Ada, Hopper or later GPU, or --device cpu, would do",
        )


def _torch_cuda_version() -> str | None:
    """The CUDA that the installed torch was built with ("12.8"), read from a file of it: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"](\d+(?:\.\d+)*)['\"]", text, re.MULTILINE)
    return None if match is None else match.group(1)


def _visible_handle(pynvml: Any) -> Any:
    """The handle of the GPU that torch will call cuda:0: the first one of CUDA_VISIBLE_DEVICES, an index or a UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = visible.split(",")[0].strip()
    if first in ("", "-1"):
        raise UnusableGpu("CUDA_VISIBLE_DEVICES hides all GPUs", "another value of it, or --device cpu, would do")
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)
