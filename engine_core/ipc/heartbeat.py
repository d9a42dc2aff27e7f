"""Step counters in shared memory by which the supervisor sees liveness and progress of every process.

Each process owns one line of three numbers: `beat` (monotonic ns of its last sign of life), `progress` (work finished,
moved on results and never on dispatch) and `pending` (work accepted and not yet finished). What they count:

| line | beats | progress | pending |
|---|---|---|---|
| engine core | each turn of its loop, once a second when idle | steps collected | unfinished requests |
| worker | when it takes a plan and when a result is published | steps finished | steps taken and not finished |
| grammar process | each turn of its loop, once a second when idle | matchers opened, masks filled | zero |
| frontend | every half second, from its event loop | tokens and requests delivered | open requests |

A process that has nothing to do and ends before the server does (a grammar process whose model can have no grammars)
says so with its last beat.

A worker does not beat inside a step, so its longest silence with work at hand is its longest step. Who draws which
conclusion stands in `frontend/supervisor/hangs.py`.
"""

import mmap
import os
import time
from typing import NamedTuple

import numpy as np

_WORDS = 8
_BEAT, _PROGRESS, _PENDING = range(3)
_RETIRED = 2**63 - 1
"""A beat that no clock reaches."""


class Line(NamedTuple):
    """What one process has written; all zero before its first beat."""

    beat_ns: int
    progress: int
    pending: int

    @property
    def is_retired(self) -> bool:
        """Its process has ended in good order; no beat will follow."""
        return self.beat_ns == _RETIRED


class Heartbeats:
    """The table of all processes; each writes its own line only.

    Engine core by engine core: its line, those of its workers by rank, that of its grammar process. The lines of the
    frontends follow.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size = os.fstat(fd).st_size
        self._mmap = mmap.mmap(fd, size)
        self._lines = np.frombuffer(self._mmap, np.int64).reshape(-1, _WORDS)

    @classmethod
    def create(cls, num_lines: int) -> "Heartbeats":
        fd = os.memfd_create("quire-heartbeats", os.MFD_CLOEXEC)
        os.ftruncate(fd, num_lines * _WORDS * 8)
        return cls(fd)

    def beat(self, index: int, progress: int, pending: int) -> None:
        """A sign of life by the process of line `index`."""
        line = self._lines[index]
        line[_PROGRESS] = progress
        line[_PENDING] = pending
        line[_BEAT] = time.monotonic_ns()

    def retire(self, index: int) -> None:
        """The last sign of life by the process of line `index`, which is no longer needed."""
        self._lines[index, _BEAT] = _RETIRED

    def read(self, index: int) -> Line:
        """The line of any process."""
        return Line(*self._lines[index, :3].tolist())


def core_line(replica: int, world_size: int) -> int:
    """Where an engine core's line stands. For the number of replicas: where the frontends' lines begin."""
    return replica * (2 + world_size)


def worker_line(core: int, rank: int) -> int:
    """Where a worker's line stands, given its engine core's."""
    return core + 1 + rank


def grammar_line(core: int, world_size: int) -> int:
    """Where the line of an engine core's grammar process stands."""
    return core + 1 + world_size
