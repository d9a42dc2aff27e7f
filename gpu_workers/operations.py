"""Which module of `kernels` carries out the operations of a device. Layers and runner hold the result and never ask again."""

import importlib
from types import ModuleType

from engine_core.config.errors import ConfigError

_MODULES = {"cpu": "kernels.cpu"}


def load_operations(device: str) -> ModuleType:
    """The operations for `device`. Raises `ConfigError` where there are none."""
    if device not in _MODULES:
        raise ConfigError(f"There are no kernels for the device {device}; there are for: {', '.join(_MODULES)}.")
    return importlib.import_module(_MODULES[device])
