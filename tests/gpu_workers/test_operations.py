"""The registry of devices, and what the start of a worker costs in memory."""

import pytest
import torch

from engine_core.config.devices import SUPPORTED_DEVICES
from engine_core.config.errors import ConfigError
from gpu_workers import operations


def test_the_configuration_knows_the_devices_that_have_operations() -> None:
    assert tuple(operations._MODULES) == SUPPORTED_DEVICES
    for device in SUPPORTED_DEVICES:
        operations.load_operations(device)
    with pytest.raises(ConfigError, match="no kernels for the device tpu"):
        operations.load_operations("tpu")


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_cache_takes_memory_only_where_it_is_written() -> None:
    make = operations.load_operations("cpu").make_kv_cache
    before = resident_bytes()
    cache = make((1024, 4, 2, 2, 16, 64), torch.bfloat16)  # 32 MiB
    assert resident_bytes() - before < 2**22
    cache[:512] = 1
    assert resident_bytes() - before > 2**23
    assert not cache[512:].any()
