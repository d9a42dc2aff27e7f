"""Who hangs, judged from the heartbeat table look by look. Knows neither processes nor a clock: time is an argument.

A process is silent while neither its beat nor its progress moves, and hangs when it has been silent for the timeout
while it should have moved. That is told for each type by what its line means (`engine_core/ipc/heartbeat.py`):

- Engine cores and frontends turn their loops whether there is work or not, so silence alone counts. `pending` would
  miss the worst cases: what blocks a loop is often a request that the loop has not counted yet.
- Workers sleep as long as there is no plan, so their silence counts only while they or their core have work: a worker
  that stands still between two steps cannot write down that a plan waits for it. A core with unfinished requests always
  has a step to run. A worker's longest silence is its longest step, which the timeout has to exceed.

Who has retired is not missed. Where a core is silent itself, nothing is said about its workers: it is the one that
gives them no work.
"""

from collections.abc import Sequence

import msgspec

from engine_core.ipc.heartbeat import Heartbeats, Line

MAX_INTERVAL = 5.0
"""Seconds between two looks; a table of a few lines costs some tens of microseconds."""
LOOKS_A_TIMEOUT = 4


class Watched(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    index: int
    core: int | None = None
    """Of a worker and a grammar process: its engine core's line."""
    module: str = ""
    """What it runs, likewise."""


class Hang(msgspec.Struct, frozen=True):
    """A process that hangs, and for how many seconds at least it has been silent."""

    process: Watched
    seconds: float


class HangWatch:
    """Call `look` every `interval` seconds."""

    def __init__(self, heartbeats: Heartbeats, processes: Sequence[Watched], timeout: float, now: float) -> None:
        """`timeout` in seconds; `now` and all later times in seconds of one clock that runs evenly."""
        self.interval = min(MAX_INTERVAL, timeout / LOOKS_A_TIMEOUT)
        self._heartbeats = heartbeats
        self._processes = sorted(processes, key=lambda process: process.core is not None)  # cores before their workers
        self._timeout = timeout
        self._looked_at = now
        self._lines: dict[int, Line] = {}
        self._silent_since = {process.index: now for process in processes}

    def look(self, now: float) -> Hang | None:
        """The first process that hangs as of `now`."""
        before = self._lines
        self._lines = {process.index: self._heartbeats.read(process.index) for process in self._processes}
        moved = {index for index, line in self._lines.items() if line[:2] != before.get(index, (0, 0, 0))[:2]}
        # Who comes late to a look was stopped or starved itself, and the others probably with it (a paused container).
        was_away = now - self._looked_at > 2 * self.interval
        self._looked_at = now
        hang = None
        for process in self._processes:
            if was_away or process.index in moved or not self._should_move(process):
                self._silent_since[process.index] = now
            seconds = now - self._silent_since[process.index]
            is_blamed = process.core is None or process.core in moved
            if hang is None and is_blamed and seconds >= self._timeout:
                hang = Hang(process, seconds)
        return hang

    def _should_move(self, process: Watched) -> bool:
        line = self._lines[process.index]
        if process.core is None or line.is_retired:
            return not line.is_retired
        return line.pending > 0 or self._lines[process.core].pending > 0
