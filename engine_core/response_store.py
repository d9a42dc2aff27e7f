"""Finished answers that a later request may refer to, for frontends that share nothing else.

Values are opaque bytes, and both their number and their bytes are bounded. They live as long as the engine core. Beside
a value may stand its progress, opaque as well, and the names of its items; both go with it.

Where there is no more room, the owner that has the most loses what it has used least recently. So each of N owners can
keep an N-th part of the store, whatever the others do.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable
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
    owner: str | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.value or b"") + len(self.progress) + sum(map(len, self.items))


class _Owned:
    """What one owner has."""

    def __init__(self) -> None:
        self.names: OrderedDict[str, None] = OrderedDict()
        """The least recently used first."""
        self.num_bytes = 0


class ResponseStore:
    """Values by name. One that is final is never replaced: of two that end an answer, the first counts."""

    def __init__(self, max_bytes: int = MAX_STORE_BYTES, max_values: int = MAX_VALUES) -> None:
        self._max_bytes = max_bytes
        self._max_values = max_values
        self._entries: dict[str, _Entry] = {}
        self._owned: defaultdict[str | None, _Owned] = defaultdict(_Owned)
        """By owner; those that have nothing are gone."""
        self._name_of_item: dict[str, str] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_items(self) -> int:
        """Names of items by which a value can be found."""
        return len(self._name_of_item)

    def put(
        self,
        name: str,
        value: bytes,
        writer: bytes | None,
        items: tuple[str, ...] = (),
        progress: bytes | None = None,
        owner: str | None = None,
    ) -> bool:
        """Whether it is kept: not in place of a final value, and not when it is larger than the whole store.

        `progress` None leaves what there is.
        """
        known = self._entries.get(name)
        if known is not None and known.writer is None:
            return False
        if progress is None:
            progress = b"" if known is None else known.progress
        return self._set(name, _Entry(value, writer, progress, items, owner))

    def put_progress(self, name: str, progress: bytes) -> bool:
        """Whether it is kept: only beside a value, which may be final, and not when both are larger than the store."""
        entry = self._entries.get(name)
        return entry is not None and entry.value is not None and self._set(name, entry._replace(progress=progress))

    def get(self, name: str) -> bytes | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        self._owned[entry.owner].names.move_to_end(name)
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
            self._add(name, _Entry(None, None, owner=entry.owner))
        return entry.value is not None

    def _set(self, name: str, entry: _Entry) -> bool:
        if entry.num_bytes > self._max_bytes:
            return False
        self._take(name)
        self._add(name, entry)
        while self.num_bytes > self._max_bytes:
            self._drop_oldest_of_most(lambda owned: owned.num_bytes)
        while len(self._entries) > self._max_values:
            self._drop_oldest_of_most(lambda owned: len(owned.names))
        return True

    def _drop_oldest_of_most(self, amount: Callable[[_Owned], int]) -> None:
        most = max(self._owned.values(), key=amount)
        self._take(next(iter(most.names)))

    def _add(self, name: str, entry: _Entry) -> None:
        self._entries[name] = entry
        self._name_of_item.update(dict.fromkeys(entry.items, name))
        self.num_bytes += entry.num_bytes
        owned = self._owned[entry.owner]
        owned.names[name] = None
        owned.num_bytes += entry.num_bytes

    def _take(self, name: str) -> _Entry | None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
            owned = self._owned[entry.owner]
            del owned.names[name]
            owned.num_bytes -= entry.num_bytes
            if not owned.names:
                del self._owned[entry.owner]
            for item in entry.items:
                if self._name_of_item.get(item) == name:
                    del self._name_of_item[item]
        return entry
