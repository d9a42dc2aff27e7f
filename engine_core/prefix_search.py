"""How much of a request's beginning is cached, in all layer groups, on the devices and in host memory.

A prefix of n tokens is there when groups that see all tokens have all of its blocks, and those with a sliding window
the blocks that token n sees: what lies behind the window may be lost. Each of these blocks may be on the devices or in
host memory.
"""

from dataclasses import dataclass
from functools import cached_property

from engine_core.block_pool import BlockPool
from engine_core.host_tier import HostTier
from engine_core.ipc.messages import DIGEST_BYTES

NO_BLOCK = -1
"""In a block table: the entry holds no block, because the window has left it behind or the block is in host memory."""


@dataclass(frozen=True)
class PrefixHit:
    """The beginning of a request that the cache has."""

    tables: list[list[int]]
    """The entries of each group's block table, equally many."""
    num_behind: int
    """How many of them a group with a sliding window does without."""
    on_host: list[tuple[int, int]]
    """Group and index of the entries whose blocks are in host memory, in the order of the tables."""

    @property
    def num_blocks(self) -> int:
        """Entries of each table."""
        return len(self.tables[0])

    @cached_property
    def found(self) -> list[list[int]]:
        """The blocks on the devices, group by group."""
        if not self.num_behind and not self.on_host:
            return self.tables
        return [[block for block in table if block != NO_BLOCK] for table in self.tables]


def identity(digest: bytes, group: int) -> bytes:
    """What a block of a layer group is found by: other groups keep other layers of the same tokens."""
    return digest + group.to_bytes() if group else digest


def digest_and_group(identity: bytes) -> tuple[bytes, int]:
    """What `identity` was made of."""
    return identity[:DIGEST_BYTES], int.from_bytes(identity[DIGEST_BYTES:])


class PrefixSearch:
    """Looks blocks up in the pool and behind it in the host tier; changes neither."""

    def __init__(self, pool: BlockPool, host: HostTier | None, block_size: int, windows: tuple[int, ...]) -> None:
        """`windows`: the sliding window of each layer group; those that see all tokens come first and have 0."""
        self._pool = pool
        self._host = host
        self._block_size = block_size
        self._num_full = windows.count(0)
        self._windowed = range(self._num_full, len(windows))
        self._window = max(windows)
        self._last: list[tuple[int, list[bytes], list[int]]] = [(0, [], [])] * len(windows)
        """Of each group: how often the pool had forgotten a block, and what was looked for and found then. Prompts that
        begin alike come one after the other."""

    def find(self, hashes: list[bytes]) -> PrefixHit:
        """The longest beginning of the chain `hashes`."""
        tables: list[list[int]] = []
        for group in range(self._num_full):
            tables.append(self._walk(hashes, group))
            hashes = hashes[: len(tables[-1])]
        end, behind = len(hashes), 0
        if self._windowed:
            end = self._find_window(hashes)
            behind = self._first_seen(end)
        tables = [table[:end] for table in tables]
        tables += [[NO_BLOCK] * behind + self._walk(hashes[behind:end], group) for group in self._windowed]
        return PrefixHit(tables, behind, [] if self._host is None else self._on_host(tables, behind))

    def _walk(self, hashes: list[bytes], group: int) -> list[int]:
        """The group's blocks of a chain up to the first that is nowhere; NO_BLOCK for those in host memory."""
        names = [identity(digest, group) for digest in hashes] if group else hashes
        table = self._find_all(names, group)
        if self._host is None:
            return table
        for name in names[len(table) :]:
            block = self._pool.find(name)
            if block is None and name not in self._host:
                break
            table.append(NO_BLOCK if block is None else block)
        return table

    def _find_all(self, names: list[bytes], group: int) -> list[int]:
        """The group's blocks on the devices up to the first that is not there."""
        num_forgotten, known, found = self._last[group]
        if num_forgotten != self._pool.num_forgotten or names[: len(found)] != known[: len(found)]:
            found = []
        table = found + self._pool.find_all(names[len(found) :])
        self._last[group] = self._pool.num_forgotten, names, table
        return table.copy()

    def _find_window(self, hashes: list[bytes]) -> int:
        """How long, in blocks, the longest beginning is for whose next token all groups with a window have all that it
        sees. Looked for from the end, where it is found at once or else behind the first gap."""
        end, begin = len(hashes), self._first_seen(len(hashes))
        index = end
        while index > begin:
            index -= 1
            if not all(self._has(identity(hashes[index], group)) for group in self._windowed):
                end, begin = index, self._first_seen(index)
        return end

    def _has(self, name: bytes) -> bool:
        return self._pool.find(name) is not None or (self._host is not None and name in self._host)

    def _first_seen(self, num_blocks: int) -> int:
        """The first block that the token behind `num_blocks` sees through the window."""
        return max(0, num_blocks * self._block_size - self._window + 1) // self._block_size

    def _on_host(self, tables: list[list[int]], behind: int) -> list[tuple[int, int]]:
        return [
            (group, index)
            for group, table in enumerate(tables)
            for index in range(behind if group >= self._num_full else 0, len(table))
            if table[index] == NO_BLOCK
        ]
