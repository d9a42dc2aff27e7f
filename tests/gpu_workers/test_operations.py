"""The registry of devices, and what the start of a worker costs in memory."""

from typing import get_args, get_type_hints

import pytest
import torch

from engine_core.config.devices import DeviceMemory
from engine_core.config.errors import ConfigError
from gpu_workers import operations


def test_the_configuration_knows_the_devices_that_have_operations() -> None:
    assert tuple(operations._MODULES) == get_args(get_type_hints(DeviceMemory)["device"])
    for device in operations._MODULES:
        operations.load_operations(device)
    with pytest.raises(ConfigError, match="no kernels for the device tpu"):
        operations.load_operations("tpu")


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_cache_takes_memory_only_where_it_is_written() -> None:
    make = operations.load_operations("cpu").make_kv_cache
    before = resident_bytes()
    cache = make((1024, 4, 2, 2, 16, 64), torch.bfloat16, torch.device("cpu"))  # 32 MiB
    assert resident_bytes() - before < 2**22
    cache[:512] = 1
    assert resident_bytes() - before > 2**23
    assert not cache[512:].any()
