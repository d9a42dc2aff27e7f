"""Which interpreters and processors Quire runs on. What it does not run on safely is refused before anything starts."""

import os
import platform
import sys

from engine_core.config.errors import ConfigError

SAFE_MACHINES = ("x86_64", "AMD64")


def check_interpreter() -> None:
    """Raises `ConfigError`.

    Assertions guard what processes agree on, and optimized Python leaves them out. The rings in shared memory have no
    barriers: a slot's number is its last store, and only x86-64 lets no other processor see stores in another order.
    """
    if sys.flags.optimize or os.environ.get("PYTHONOPTIMIZE", "") not in ("", "0"):
        raise ConfigError("Optimized Python leaves out checks that Quire needs: start without -O and PYTHONOPTIMIZE.")
    machine = platform.machine()
    if machine not in SAFE_MACHINES:
        raise ConfigError(f"Quire needs an x86-64 processor: its processes' shared memory is not safe on {machine!r}.")
