"""The progress of a start on stderr: a bar per stage on a terminal, one plain line per finished stage elsewhere."""

import sys
import time
from typing import Any

from engine_core.ipc.control import Progress
from engine_core.planning.memory_plan import format_bytes


class ProgressDisplay:
    """Shows `Progress` messages. Stages may interleave; each is shown until it is complete."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._bars: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._finished: set[str] = set()

    def update(self, message: Progress) -> None:
        if not self._enabled or message.stage in self._finished:
            return
        started = self._started.setdefault(message.stage, time.monotonic())
        if sys.stderr.isatty():
            self._draw(message)
        if message.done >= message.total:
            self._finished.add(message.stage)
            self._close_bar(message.stage)
            print(_summary(message, time.monotonic() - started), file=sys.stderr, flush=True)

    def _draw(self, message: Progress) -> None:
        """tqdm is imported here because most starts are not watched on a terminal."""
        bar = self._bars.get(message.stage)
        if bar is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread that wakes up beside ours
            is_bytes = message.unit == "B"
            bar = self._bars[message.stage] = tqdm(
                desc=f"  {message.stage:<13}",
                total=message.total,
                unit="B" if is_bytes else f" {message.unit}",
                unit_scale=is_bytes,
                unit_divisor=1024,
                leave=False,
                file=sys.stderr,
            )
        bar.update(message.done - bar.n)

    def _close_bar(self, stage: str) -> None:
        bar = self._bars.pop(stage, None)
        if bar is not None:
            bar.close()

    def close(self) -> None:
        """Clears bars of stages that were not completed."""
        for stage in list(self._bars):
            self._close_bar(stage)


def _summary(message: Progress, seconds: float) -> str:
    if message.unit != "B":
        return f"  {message.stage:<15}{message.done} {message.unit} in {seconds:.1f} s"
    rate = f", {format_bytes(int(message.done / seconds))}/s" if seconds > 0.01 else ""
    return f"  {message.stage:<15}{format_bytes(message.done)} in {seconds:.1f} s{rate}"
