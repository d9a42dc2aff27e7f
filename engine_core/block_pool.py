"""Physical KV blocks: who holds them, which are free, in which order cached ones are given up.

A block is *owned* (reference count > 0), *cached* (count 0, but its contents can still be found by hash) or *free*.
Free and cached blocks form one doubly linked list in allocation order: free ones at the head, cached ones behind them
with the least recently used first. The list lives in flat arrays, so a block costs a fixed few bytes and every
operation is O(1) per block whatever the pool's size. The pool knows nothing of requests or tokens.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """Allocation, sharing and release of `num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.num_available = num_blocks
        """Blocks that `allocate` can give out: free and cached ones."""
        self.num_evictions = 0
        self.on_evicted: Callable[[int, bytes], None] | None = None
        """Called with a cached block that is given up and its digest, before its new owner writes to it."""
        self._reference_counts = array("i", bytes(4 * num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        # Position num_blocks is the list's sentinel: its next is the head, its previous the tail.
        self._next = array("i", [*range(1, num_blocks + 1), 0])
        self._previous = array("i", [num_blocks, *range(num_blocks)])

    @property
    def num_owned(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns and that can still be found."""
        return sum(1 for block in self._hash_of if self._reference_counts[block] == 0)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks with reference count 1; the caller has looked at `num_available` first."""
        assert 0 <= count <= self.num_available, (count, self.num_available)
        blocks = []
        for _ in range(count):
            block = self._next[self.num_blocks]
            self._unlink(block)
            digest = self._hash_of.pop(block, None)
            if digest is not None:
                del self._block_of[digest]
                self.num_evictions += 1
                if self.on_evicted is not None:
                    self.on_evicted(block, digest)
            self._reference_counts[block] = 1
            blocks.append(block)
        self.num_available -= count
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds an owner to each block, which is owned already or cached."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                assert block in self._hash_of, block
                self._unlink(block)
                self.num_available -= 1
            self._reference_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one owner from each block of a block table.

        They go from the last to the first, so that the ends of a chain are given up before what leads to them.
        """
        for block in reversed(blocks):
            count = self._reference_counts[block] - 1
            assert count >= 0, block
            self._reference_counts[block] = count
            if count == 0:
                self.num_available += 1
                tail = self._previous[self.num_blocks]
                self._link_after(tail if block in self._hash_of else self.num_blocks, block)

    def find(self, digest: bytes) -> int | None:
        """The block with these contents, owned or cached."""
        return self._block_of.get(digest)

    def is_owned(self, block: int) -> bool:
        return self._reference_counts[block] > 0

    def register(self, block: int, digest: bytes) -> None:
        """Makes an owned block findable. A second block with the same contents stays private."""
        assert self._reference_counts[block] > 0, block
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def forget_all(self) -> None:
        """Drops every hash: the contents died with their workers. Cached blocks become free ones."""
        self._block_of.clear()
        self._hash_of.clear()

    def check_integrity(self) -> None:
        """Asserts what must hold between any two calls; O(num_blocks), run when idle and by tests."""
        listed = []
        block, before = self._next[self.num_blocks], self.num_blocks
        while block != self.num_blocks:
            assert self._previous[block] == before, block
            assert self._reference_counts[block] == 0, block
            listed.append(block)
            assert len(listed) <= self.num_blocks
            before, block = block, self._next[block]
        assert self._previous[self.num_blocks] == before
        assert len(listed) == len(set(listed)) == self.num_available, (len(listed), self.num_available)
        owned = sum(1 for count in self._reference_counts if count > 0)
        assert owned + self.num_available == self.num_blocks, (owned, self.num_available)
        assert len(self._hash_of) == len(self._block_of)
        assert all(self._block_of[digest] == block for block, digest in self._hash_of.items())

    def reference_count(self, block: int) -> int:
        return self._reference_counts[block]

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before

    def _link_after(self, before: int, block: int) -> None:
        after = self._next[before]
        self._next[before] = self._previous[after] = block
        self._previous[block] = before
        self._next[block] = after
