"""Which device a start gets, whatever the machine that runs the tests has: the driver's library is a stand-in."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from engine_core.config.devices import DeviceMemory, probe_device
from engine_core.config.errors import ConfigError

GIB = 2**30
VERSION_FILES = {
    "12.8": "from typing import Optional\n__version__ = '2.11.0+cu128'\ncuda: Optional[str] = '12.8'\nhip = None\n",
    "13.0": "__version__ = '2.13.0'\ncuda = \"13.0\"\n",
    "no CUDA": "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nxpu = '12.8'\n",
}


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class FakeNvml(types.ModuleType):
    """Two GPUs and a driver; the handle of a GPU is its index or UUID."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = NVMLError_DriverNotLoaded

    def __init__(self, **changes: Any) -> None:
        super().__init__("pynvml")
        self.capability, self.driver = (9, 0), 12080
        self.init_error: NVMLError | None = None
        self.num_open = 0
        self.__dict__.update(changes)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if index > 1:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return f"GPU {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return types.SimpleNamespace(total=80 * GIB, free=79 * GIB, used=GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return self.capability

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.driver


class Machine:
    """What this test's machine has; every part can be changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._folder = monkeypatch, folder
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.install_nvml()
        self.install_torch(VERSION_FILES["12.8"])

    def install_nvml(self, **changes: Any) -> None:
        self.nvml = FakeNvml(**changes)
        self._monkeypatch.setitem(sys.modules, "pynvml", self.nvml)

    def remove_nvml(self) -> None:
        self._monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it fails

    def install_torch(self, version_file: str | None) -> None:
        """A torch whose version.py has this content; None: no such file."""
        if version_file is not None:
            (self._folder / "version.py").write_text(version_file)
        spec = importlib.machinery.ModuleSpec("torch", None, origin=str(self._folder / "__init__.py"))
        self._monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    def remove_torch(self) -> None:
        self._monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_is_taken_where_there_is_one(device: str, machine: Machine) -> None:
    assert probe_device(device) == DeviceMemory("cuda", "GPU 0", 80 * GIB, 79 * GIB)
    assert machine.nvml.num_open == 0
    assert probe_device("cpu").device == "cpu"


@pytest.mark.parametrize(("visible", "name"), [("1,0", "GPU 1"), ("GPU-abc", "GPU GPU-abc"), (" 0", "GPU 0")])
def test_the_first_visible_gpu_counts(
    visible: str, name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert probe_device("cuda").name == name


def assert_refused(reason: str, remedy: str) -> None:
    """`cuda` is one sentence with both; `auto` takes the CPU and names the reason."""
    with pytest.raises(ConfigError) as caught:
        probe_device("cuda")
    message = str(caught.value)
    assert reason in message
    assert remedy in message
    assert "\n" not in message
    memory = probe_device("auto")
    assert memory.device == "cpu"
    assert f"(no GPU: {reason}" in memory.name


@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        ({"init_error": NVMLError_LibraryNotFound()}, "there is no NVIDIA driver", "--device cpu needs none"),
        ({"init_error": NVMLError_DriverNotLoaded()}, "there is no NVIDIA driver", "--device cpu needs none"),
        ({"init_error": NVMLError("mismatch")}, "the NVIDIA driver fails (mismatch)", "--device cpu needs none"),
        ({"capability": (7, 5)}, "GPU 0 has compute capability 7.5 and the kernels need 8.0", "an Ampere"),
        (
            {"driver": 11080},
            "torch was built for CUDA 12.8 and the driver is for CUDA 11",
            "a newer driver, a torch built for CUDA 11, or --device cpu would do",
        ),
    ],
)
def test_a_driver_or_a_gpu_that_does_not_fit(
    changes: dict[str, Any], reason: str, remedy: str, machine: Machine
) -> None:
    machine.install_nvml(**changes)
    assert_refused(reason, remedy)
    assert machine.nvml.num_open == 0


def test_an_older_driver_of_the_same_major_version_will_do(machine: Machine) -> None:
    machine.install_nvml(driver=12020, capability=(8, 0))
    assert probe_device("cuda").device == "cuda"
    machine.install_torch(VERSION_FILES["13.0"])
    assert_refused("torch was built for CUDA 13.0 and the driver is for CUDA 12", "a torch built for CUDA 12")


@pytest.mark.parametrize(
    "version_file", [VERSION_FILES["no CUDA"], "cuda = 7\n", None], ids=["none", "no text", "no file"]
)
def test_a_torch_without_cuda(version_file: str | None, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "version.py").unlink()
    machine.install_torch(version_file)
    assert_refused("torch was built without CUDA", "a torch built for CUDA 12, or --device cpu, would do")


def test_no_torch_at_all(machine: Machine) -> None:
    machine.remove_torch()
    assert_refused("torch was built without CUDA", "--device cpu")


def test_no_library_to_ask_the_driver(machine: Machine) -> None:
    machine.remove_nvml()
    assert_refused("the package nvidia-ml-py, which tells its memory, is not installed", "pip install 'quire[gpu]'")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus(visible: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert_refused("CUDA_VISIBLE_DEVICES hides all GPUs", "--device cpu")


def test_a_gpu_that_is_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert_refused("the driver does not give us the GPU (Invalid Argument)", "nvidia-smi")
