"""Work of many parts on the event loop, in slices: between two of them others have a turn."""

import asyncio
import time

SLICE_SECONDS = 0.002


class Slices:
    """Of one piece of work. A part that takes longer than a slice is not cut."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SLICE_SECONDS

    async def pause(self) -> None:
        """To be called between two parts. Returns at once while the slice lasts."""
        if time.monotonic() >= self._end:
            await asyncio.sleep(0)
            self._end = time.monotonic() + SLICE_SECONDS
