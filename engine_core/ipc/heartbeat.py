"""Step counters in shared memory by which the supervisor sees liveness and progress of every process.

Each process owns one line of three numbers: `beat` (monotonic ns of its last turn of the loop), `progress` (work
finished, moved on results and never on dispatch) and `pending` (work accepted and not yet finished). A process that
beats but does not progress while work is pending hangs; an idle one may sleep as long as it likes, because whoever
looks counts only a process with pending work as late.
"""

import mmap
import os
import time

import numpy as np

_WORDS = 8
_BEAT, _PROGRESS, _PENDING = range(3)


class Heartbeats:
    """The table of all processes; each writes its own line only."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size = os.fstat(fd).st_size
        self._mmap = mmap.mmap(fd, size)
        self._lines = np.frombuffer(self._mmap, np.int64).reshape(-1, _WORDS)

    @classmethod
    def create(cls, num_processes: int) -> "Heartbeats":
        fd = os.memfd_create("quire-heartbeats", os.MFD_CLOEXEC)
        os.ftruncate(fd, num_processes * _WORDS * 8)
        return cls(fd)

    def beat(self, process: int, progress: int, pending: int) -> None:
        """Called by process number `process` once a turn of its loop."""
        line = self._lines[process]
        line[_PROGRESS] = progress
        line[_PENDING] = pending
        line[_BEAT] = time.monotonic_ns()

    def read(self, process: int) -> tuple[float, int, int]:
        """Seconds since the last beat (infinite before the first), progress, pending."""
        beat, progress, pending = (int(value) for value in self._lines[process][:3])
        age = (time.monotonic_ns() - beat) / 1e9 if beat else float("inf")
        return age, progress, pending
