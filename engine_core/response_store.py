"""Finished answers that a later request may refer to, for frontends that share nothing else.

Values are opaque bytes, the least recently used go first, and both their number and their bytes are bounded. They live
as long as the engine core.
"""

from collections import OrderedDict
from typing import NamedTuple

MAX_STORE_BYTES = 128 * 2**20
MAX_VALUES = 16_384


class _Entry(NamedTuple):
    value: bytes
    writer: bytes | None
    """Who is to bring the final value; None: this is it."""


class ResponseStore:
    """Values by name. One that is final is never replaced: of two that end an answer, the first counts."""

    def __init__(self, max_bytes: int = MAX_STORE_BYTES, max_values: int = MAX_VALUES) -> None:
        self._max_bytes = max_bytes
        self._max_values = max_values
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, name: str, value: bytes, writer: bytes | None) -> bool:
        """Whether it is kept: not in place of a final value, and not when it is larger than the whole store."""
        known = self._entries.get(name)
        if (known is not None and known.writer is None) or len(value) > self._max_bytes:
            return False
        self.remove(name)
        self._entries[name] = _Entry(value, writer)
        self.num_bytes += len(value)
        while self.num_bytes > self._max_bytes or len(self._entries) > self._max_values:
            self.remove(next(iter(self._entries)))
        return True

    def get(self, name: str) -> bytes | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        self._entries.move_to_end(name)
        return entry.value

    def writer_of(self, name: str) -> bytes | None:
        """Who is to bring the final value; None where there is one, or nothing."""
        entry = self._entries.get(name)
        return None if entry is None else entry.writer

    def remove(self, name: str) -> bool:
        """Whether there was one."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return False
        self.num_bytes -= len(entry.value)
        return True
