"""What a router learns of an engine core's prefix cache: batches of events as plain data, and a stream of them."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

MAX_UNREAD_BATCHES = 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that can be found from now on, each following the one before it, the first one `parent`."""

    digests: list[bytes]
    parent: bytes
    num_tokens: int
    """Tokens in each block."""
    group: int = 0


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that can no longer be found."""

    digests: list[bytes]
    group: int = 0


@dataclass(frozen=True, slots=True)
class Cleared:
    """No block can be found any more."""


@dataclass(frozen=True, slots=True)
class BlockBatch:
    """What happened in one turn of the core's loop, in order."""

    sequence: int
    gap: bool = False
    """Batches before this one are missing: what is known of the cache is out of date."""
    changes: list[Stored | Removed | Cleared] = field(default_factory=list)


class BlockEventStream:
    """An asynchronous iterator of batches. A reader that is too slow gets a gap in place of what it missed."""

    def __init__(self) -> None:
        self._batches: deque[BlockBatch] = deque()
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def push(self, batch: BlockBatch) -> None:
        if batch.gap or len(self._batches) >= MAX_UNREAD_BATCHES:
            self._batches.clear()  # of no use to a reader that has to begin anew
            self._batches.append(BlockBatch(batch.sequence, gap=True))
            if not batch.gap:
                self._batches.append(batch)
        else:
            self._batches.append(batch)
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """No more will come; raised once all that came is read."""
        self._error = error
        self._arrived.set()

    def __aiter__(self) -> "BlockEventStream":
        return self

    async def __anext__(self) -> BlockBatch:
        while not self._batches:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        return self._batches.popleft()
