"""Grandchildren: a worker whose engine core was killed becomes our child and is waited for like one.

Workers end by themselves when the link to their core ends; this makes sure of it before we say that nothing is left.
One that hangs is killed while it still is its core's child.
"""

import contextlib
import ctypes
import os
import select
import signal
import time

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on descendants whose parent dies become children of this process instead of init's."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children(pid: int, module: str) -> None:
    """Kills the children that run a module of ours, of a process of ours, which sees to the rest. Processes that are
    gone need no killing."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            if module in child.cmdline():
                child.kill()


def reap_orphans(grace: float) -> None:
    """Waits for all children that are left, and kills those that are still there after `grace` seconds."""
    deadline = time.monotonic() + grace
    while children := psutil.Process().children():
        for child in children:
            try:
                pidfd = os.pidfd_open(child.pid)
            except ProcessLookupError:
                continue
            try:
                if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    os.kill(child.pid, signal.SIGKILL)
                    select.select([pidfd], [], [])
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
            finally:
                os.close(pidfd)
