"""Physical KV blocks: who holds them, which are free, in which order cached ones are given up.

A block is *owned* (reference count > 0), *cached* (count 0, but its contents can still be found by hash) or *free*.
Free and cached blocks form one doubly linked list in allocation order: free ones at the head, cached ones behind them
with the least recently used first. The list lives in flat arrays, so a block costs a fixed few bytes and every
operation is O(1) per block whatever the pool's size. The pool knows nothing of requests or tokens.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol


class PoolObserver(Protocol):
    """Hears when contents can no longer be found."""

    def removed(self, block: int, digest: bytes) -> None:
        """`block` was given out for other contents."""

    def cleared(self) -> None:
        """All contents are gone."""


class BlockPool:
    """Allocation, sharing and release of `num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.num_available = num_blocks
        """Blocks that `allocate` can give out: free and cached ones."""
        self.num_cached = 0
        """Blocks that nobody owns and that can still be found."""
        self.num_shared = 0
        """Blocks with more than one owner."""
        self.num_evictions = 0
        self.observer: PoolObserver | None = None
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
    def num_findable(self) -> int:
        """Blocks that can be found by their contents, owned or cached."""
        return len(self._hash_of)

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
                self.num_cached -= 1
                self.num_evictions += 1
                if self.observer is not None:
                    self.observer.removed(block, digest)
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
                self.num_cached -= 1
            self._reference_counts[block] += 1
            self.num_shared += self._reference_counts[block] == 2

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
                if block in self._hash_of:
                    self.num_cached += 1
                    self._link_after(self._previous[self.num_blocks], block)
                else:
                    self._link_after(self.num_blocks, block)
            elif count == 1:
                self.num_shared -= 1

    def find(self, digest: bytes) -> int | None:
        """The block with these contents, owned or cached."""
        return self._block_of.get(digest)

    def is_owned(self, block: int) -> bool:
        return self._reference_counts[block] > 0

    def digest_of(self, block: int) -> bytes | None:
        """What `find` knows the block's contents by."""
        return self._hash_of.get(block)

    def register(self, block: int, digest: bytes) -> bool:
        """Makes an owned block findable. False: there is one with the same contents already, and this stays private."""
        assert self._reference_counts[block] > 0, block
        if digest in self._block_of or block in self._hash_of:
            return False
        self._block_of[digest] = block
        self._hash_of[block] = digest
        return True

    def forget_all(self) -> None:
        """Drops every hash: the contents died with their workers. Cached blocks become free ones."""
        self._block_of.clear()
        self._hash_of.clear()
        self.num_cached = 0
        if self.observer is not None:
            self.observer.cleared()

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
        assert self.num_cached == sum(1 for block in self._hash_of if self._reference_counts[block] == 0)
        assert self.num_shared == sum(1 for count in self._reference_counts if count > 1)
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
