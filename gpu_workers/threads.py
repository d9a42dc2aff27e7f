"""How many threads a CPU worker computes with, how they wait, and how its memory is kept. Imported before torch."""

import ctypes
import os
import sys

import psutil

from engine_core.config.engine_config import EngineConfig

SPIN_COUNT = "5000"
"""Turns of OpenMP's waiting loop before a thread sleeps, some tens of microseconds: enough to bridge the operations
of a step that run on one thread (waking a thread for each product costs a third of a small model's step), too short to
be seen on an idle machine."""
SWITCH_INTERVAL_SECONDS = 5e-5
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def prepare_environment() -> None:
    """Settings that the thread library reads when torch is loaded; what the user set himself stays."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # GNU's OpenMP, which torch's own wheels use
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # Intel's, in milliseconds


def keep_freed_memory() -> None:
    """Lets the C library keep what a step frees: by default large intermediates are mapped anew, and the page faults
    cost several percent of a small model's step. Called when the weights are loaded, whose leftovers should go."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # GNU's library has it
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_num_threads(configured: int, num_cores: int) -> int:
    """One per physical core; on larger machines one core is left to the engine core and the frontends, which on a small
    one run in the gaps."""
    if configured > 0:
        return configured
    return max(1, num_cores - 1 if num_cores > 4 else num_cores)


def limit_threads(config: EngineConfig) -> None:
    """Sets torch's threads for this process."""
    import torch

    usable = len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False) or usable
    torch.set_num_threads(choose_num_threads(config.num_threads, min(usable, physical)))
    torch.set_num_interop_threads(1)


def share_interpreter() -> None:
    """A GPU's worker has two threads, one that launches and one that publishes results. A result must not wait for the
    5 ms that Python by default leaves a thread at work before it makes it give way."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
