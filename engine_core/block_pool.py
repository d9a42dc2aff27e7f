"""Physical KV blocks: who holds them, which are free, in which order cached ones are given up.

A block is *owned* (reference count > 0), *cached* (count 0, but its contents can still be found by hash) or *free*.
Free and cached blocks form one doubly linked list in allocation order: free ones at the head, cached ones behind them
with the least recently used first. The list lives in flat arrays, so a block costs a fixed few bytes and every
operation is O(1) per block whatever the pool's size. The pool knows nothing of requests or tokens.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

from engine_core.digest_map import DigestMap


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
        self.num_forgotten = 0
        """Grows whenever a block that could be found no longer can be."""
        self.observer: PoolObserver | None = None
        self._reference_counts = array("i", bytes(4 * num_blocks))
        self._digest_of: list[bytes | None] = [None] * num_blocks
        self._block_of = DigestMap()
        # Position num_blocks is the list's sentinel: its next is the head, its previous the tail.
        self._next = array("i", [*range(1, num_blocks + 1), 0])
        self._previous = array("i", [num_blocks, *range(num_blocks)])

    @property
    def num_owned(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_findable(self) -> int:
        """Blocks that can be found by their contents, owned or cached."""
        return len(self._block_of)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks with reference count 1; the caller has looked at `num_available` first."""
        assert 0 <= count <= self.num_available, (count, self.num_available)
        following, counts, digest_of = self._next, self._reference_counts, self._digest_of
        blocks, evicted = [], []
        block = following[self.num_blocks]
        for _ in range(count):
            counts[block] = 1
            blocks.append(block)
            if digest_of[block] is not None:
                evicted.append(block)
            block = following[block]
        following[self.num_blocks] = block
        self._previous[block] = self.num_blocks
        self.num_available -= count
        if evicted:
            self._forget(evicted)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds an owner to each block, which is owned already or cached."""
        counts = self._reference_counts
        for block in blocks:
            count = counts[block]
            counts[block] = count + 1
            if count == 0:
                assert self._digest_of[block] is not None, block
                self._unlink(block)
                self.num_available -= 1
                self.num_cached -= 1
            elif count == 1:
                self.num_shared += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one owner from each block of block tables.

        They go from the last to the first, so that the ends of a chain are given up before what leads to them.
        """
        counts, digest_of = self._reference_counts, self._digest_of
        following, previous, sentinel = self._next, self._previous, self.num_blocks
        for block in reversed(blocks):
            count = counts[block] - 1
            counts[block] = count
            if count == 0:
                self.num_available += 1
                if digest_of[block] is not None:
                    self.num_cached += 1
                    before, after = previous[sentinel], sentinel
                else:
                    before, after = sentinel, following[sentinel]
                following[before] = previous[after] = block
                previous[block], following[block] = before, after
            elif count == 1:
                self.num_shared -= 1
            else:
                assert count > 0, block

    def find(self, digest: bytes) -> int | None:
        """The block with these contents, owned or cached."""
        return self._block_of.get(digest)

    def find_all(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks with these contents, up to the first that is not there."""
        shards = self._block_of.shards
        blocks = []
        for digest in digests:
            block = shards[digest[0]].get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_available(self, blocks: Iterable[int]) -> int:
        """How many of them nobody owns."""
        counts = self._reference_counts
        return sum([counts[block] == 0 for block in blocks])

    def digest_of(self, block: int) -> bytes | None:
        """What `find` knows the block's contents by."""
        return self._digest_of[block]

    def register(self, blocks: Sequence[int], digests: Sequence[bytes]) -> list[int]:
        """Makes owned blocks findable. Returns the positions of those that stay private, because there is one with the
        same contents already."""
        shards, digest_of, counts = self._block_of.shards, self._digest_of, self._reference_counts
        private = []
        for position, (block, digest) in enumerate(zip(blocks, digests, strict=True)):
            assert counts[block] > 0, block
            shard = shards[digest[0]]
            if digest in shard or digest_of[block] is not None:
                private.append(position)
            else:
                shard[digest] = block
                digest_of[block] = digest
        return private

    def forget_all(self) -> None:
        """Drops every hash: nothing can be found any more. Cached blocks become free ones."""
        self.num_forgotten += len(self._block_of)
        self._block_of.clear()
        self._digest_of = [None] * self.num_blocks
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
        findable = {block: digest for block, digest in enumerate(self._digest_of) if digest is not None}
        assert self.num_cached == sum(1 for block in findable if self._reference_counts[block] == 0)
        assert self.num_shared == sum(1 for count in self._reference_counts if count > 1)
        assert len(findable) == len(self._block_of)
        assert all(self._block_of[digest] == block for block, digest in findable.items())

    def reference_count(self, block: int) -> int:
        return self._reference_counts[block]

    def _forget(self, blocks: list[int]) -> None:
        """Cached blocks were given out for other contents."""
        self.num_cached -= len(blocks)
        self.num_evictions += len(blocks)
        self.num_forgotten += len(blocks)
        for block in blocks:
            digest = self._digest_of[block]
            assert digest is not None
            self._digest_of[block] = None
            del self._block_of[digest]
            if self.observer is not None:
                self.observer.removed(block, digest)

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
