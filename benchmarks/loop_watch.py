"""A frontend whose event loop is watched from inside: how long one turn of it lasts.

Started in the place of `python -m frontend`, with the same arguments and one more, the file for the figures. A timer
ticks every millisecond; what lies between two ticks beyond that is a hold of the loop. Beside the time that passed
stands the CPU time of the loop's thread: on a busy machine only that is the request's own doing.
"""

import asyncio
import gc
import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from frontend.__main__ import main as serve

TICK_SECONDS = 0.001
_FIGURES = struct.Struct("<ddd")


class LoopFigures:
    """The longest hold, the longest one in CPU time, and the longest collection of garbage, in seconds. Shared through
    a file: the frontend writes, the benchmark reads and starts again."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FIGURES.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FIGURES.size)

    def read(self) -> tuple[float, float, float]:
        return _FIGURES.unpack_from(self._memory)

    def note(self, *figures: float) -> None:
        """Keeps the largest of each."""
        _FIGURES.pack_into(self._memory, 0, *map(max, self.read(), figures))

    def reset(self) -> None:
        _FIGURES.pack_into(self._memory, 0, 0.0, 0.0, 0.0)


class _LoopWatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, figures: LoopFigures) -> None:
        self._loop = loop
        self._figures = figures
        self._last = self._last_cpu = self._collection_began = 0.0
        gc.callbacks.append(self._note_collection)
        loop.call_soon(self._tick)

    def _tick(self) -> None:
        now, cpu = time.monotonic(), time.thread_time()
        if self._last:
            self._figures.note(now - self._last - TICK_SECONDS, cpu - self._last_cpu, 0.0)
        self._last, self._last_cpu = now, cpu
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _note_collection(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._collection_began = time.monotonic()
        else:
            self._figures.note(0.0, 0.0, time.monotonic() - self._collection_began)


def main() -> int:
    figures = LoopFigures(Path(sys.argv.pop(1)))
    new_event_loop = uvloop.new_event_loop

    def new_watched_loop() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        _LoopWatch(loop, figures)
        return loop

    uvloop.new_event_loop = new_watched_loop
    return serve()


if __name__ == "__main__":
    sys.exit(main())
