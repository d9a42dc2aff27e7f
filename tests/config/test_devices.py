"""Which device a start gets, whatever the machine that runs the tests has."""

import pytest

from engine_core.config import devices
from engine_core.config.devices import DeviceMemory, probe_device
from engine_core.config.errors import ConfigError

GPU = DeviceMemory("cuda", "NVIDIA Test", 80 * 2**30, 79 * 2**30)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_query_gpu", lambda: GPU)


def test_a_gpu_without_kernels_is_left_alone_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SUPPORTED_DEVICES", ("cpu",))
    memory = probe_device("auto")
    assert memory.device == "cpu"
    assert memory.name.endswith("(NVIDIA Test is not used: no kernels for GPUs yet)")
    assert "NVIDIA" not in probe_device("cpu").name


def test_asking_for_a_gpu_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SUPPORTED_DEVICES", ("cpu",))
    with pytest.raises(ConfigError, match=r"^--device cuda cannot be served: [^\n]*$"):
        probe_device("cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_with_kernels_is_taken(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SUPPORTED_DEVICES", ("cpu", "cuda"))
    assert probe_device(device) == GPU
