"""Finished answers that a later request may refer to, for frontends that share nothing else.

Values are opaque bytes, the least recently used go first, and both their number and their bytes are bounded. They live
as long as the engine core. Beside a value may stand its progress, opaque as well, and the names of its items; both go
with it.
"""

from collections import OrderedDict
from typing import NamedTuple

MAX_STORE_BYTES = 128 * 2**20
MAX_VALUES = 16_384


class _Entry(NamedTuple):
    value: bytes | None
    """None: it was deleted before its final value came, which is not wanted any more."""
    writer: bytes | None
    """Who is to bring the final value; None: this is it."""
    progress: bytes = b""
    items: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return len(self.value or b"") + len(self.progress) + sum(map(len, self.items))


class ResponseStore:
    """Values by name. One that is final is never replaced: of two that end an answer, the first counts."""

    def __init__(self, max_bytes: int = MAX_STORE_BYTES, max_values: int = MAX_VALUES) -> None:
        self._max_bytes = max_bytes
        self._max_values = max_values
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._name_of_item: dict[str, str] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_items(self) -> int:
        """Names of items by which a value can be found."""
        return len(self._name_of_item)

    def put(
        self, name: str, value: bytes, writer: bytes | None, items: tuple[str, ...] = (), progress: bytes | None = None
    ) -> bool:
        """Whether it is kept: not in place of a final value, and not when it is larger than the whole store.

        `progress` None leaves what there is.
        """
        known = self._entries.get(name)
        if known is not None and known.writer is None:
            return False
        if progress is None:
            progress = b"" if known is None else known.progress
        return self._set(name, _Entry(value, writer, progress, items))

    def put_progress(self, name: str, progress: bytes) -> bool:
        """Whether it is kept: only beside a value, which may be final, and not when both are larger than the store."""
        entry = self._entries.get(name)
        return entry is not None and entry.value is not None and self._set(name, entry._replace(progress=progress))

    def get(self, name: str) -> bytes | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        self._entries.move_to_end(name)
        return entry.value

    def progress_of(self, name: str) -> bytes:
        """Empty where there is none."""
        entry = self._entries.get(name)
        return b"" if entry is None else entry.progress

    def writer_of(self, name: str) -> bytes | None:
        """Who is to bring the final value; None where there is one, or nothing."""
        entry = self._entries.get(name)
        return None if entry is None else entry.writer

    def name_of_item(self, item: str) -> str | None:
        """The value that has an item of that name."""
        return self._name_of_item.get(item)

    def remove(self, name: str) -> bool:
        """Whether there was one. In place of a final value that is still to come an empty entry stays, to refuse it."""
        entry = self._take(name)
        if entry is None:
            return False
        if entry.value is None or entry.writer is not None:
            self._entries[name] = _Entry(None, None)
        return entry.value is not None

    def _set(self, name: str, entry: _Entry) -> bool:
        if entry.num_bytes > self._max_bytes:
            return False
        self._take(name)
        self._entries[name] = entry
        self._name_of_item.update(dict.fromkeys(entry.items, name))
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self._max_bytes or len(self._entries) > self._max_values:
            self._take(next(iter(self._entries)))
        return True

    def _take(self, name: str) -> _Entry | None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
            for item in entry.items:
                if self._name_of_item.get(item) == name:
                    del self._name_of_item[item]
        return entry
