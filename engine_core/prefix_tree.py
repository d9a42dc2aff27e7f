"""Which findable blocks follow which: the prefix cache as a tree, for the inspector, kept up to date block by block.

A *chain* is the way from the first block of a prompt to one that nothing follows; a *shared prefix* is the way to a
block that is followed by several. Every change is O(1), and the longest ones are found without looking at the others.
"""

import heapq
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import islice


class PrefixTree:
    """Nodes are blocks; edges are digests, because a block may outlive the one before it, which may also come back."""

    def __init__(self, num_blocks: int, find: Callable[[bytes], int | None]) -> None:
        """`find` is the pool's: the findable block of a digest."""
        self._find = find
        self._lengths = array("i", bytes(4 * num_blocks))
        """Blocks from the root to this one, itself included."""
        self._parents: list[bytes] = [b""] * num_blocks
        self._last_used = array("d", bytes(8 * num_blocks))
        self._num_children: dict[bytes, int] = {}
        self._ends = _ByLength()
        self._forks = _ByLength()

    def parent(self, block: int) -> bytes:
        """The digest of the block before this one, or the root's."""
        return self._parents[block]

    def length(self, block: int) -> int:
        return self._lengths[block]

    def num_continuations(self, digest: bytes) -> int:
        """How many findable blocks follow the one of that digest."""
        return self._num_children.get(digest, 0)

    def last_used(self, block: int) -> float:
        """Of a chain's end: when somebody last found, filled or left it."""
        return self._last_used[block]

    def stored(self, block: int, digest: bytes, parent: bytes, length: int, now: float) -> None:
        """`block` can be found from now on; `parent` is the digest before it."""
        self._lengths[block] = length
        self._parents[block] = parent
        self._last_used[block] = now
        self._count_child(parent, 1)
        self._place(block, self._num_children.get(digest, 0))

    def removed(self, block: int) -> None:
        """The block was given out for other contents."""
        length, parent = self._lengths[block], self._parents[block]
        self._ends.discard(length, block)
        self._forks.discard(length, block)
        self._count_child(parent, -1)
        before = self._find(parent)
        if before is not None:
            self._last_used[before] = max(self._last_used[before], self._last_used[block])

    def touch(self, block: int, now: float) -> None:
        """A request found, or left, the chain that ends with this block."""
        self._last_used[block] = now

    def clear(self) -> None:
        self._num_children.clear()
        self._ends, self._forks = _ByLength(), _ByLength()

    def longest_chains(self, count: int) -> list[int]:
        """The last blocks of the `count` longest chains, longest first."""
        return self._ends.longest(count)

    def longest_shared_prefixes(self, count: int) -> list[int]:
        """The last blocks of the `count` longest prefixes that several chains begin with, longest first."""
        return self._forks.longest(count)

    def check_integrity(self, block_of: Mapping[bytes, int]) -> None:
        """Asserts what must hold between any two calls, for tests; `block_of` has all findable blocks."""
        children: dict[bytes, int] = {}
        for block in block_of.values():
            children[self._parents[block]] = children.get(self._parents[block], 0) + 1
        assert children == self._num_children
        ends = {block for digest, block in block_of.items() if digest not in children}
        forks = {block for digest, block in block_of.items() if children.get(digest, 0) > 1}
        everything = len(block_of)
        for found, wanted in ((self._ends.longest(everything), ends), (self._forks.longest(everything), forks)):
            assert len(found) == len(set(found))
            assert set(found) == wanted
            assert [self._lengths[block] for block in found] == sorted((self._lengths[b] for b in found), reverse=True)

    def _count_child(self, parent: bytes, change: int) -> None:
        count = self._num_children.get(parent, 0) + change
        if count:
            self._num_children[parent] = count
        else:
            del self._num_children[parent]
        block = self._find(parent)
        if block is not None:
            self._place(block, count)

    def _place(self, block: int, num_children: int) -> None:
        """Only a change between none, one and several moves a block."""
        length = self._lengths[block]
        if num_children == 0:
            self._ends.add(length, block)
        else:
            self._ends.discard(length, block)
        if num_children > 1:
            self._forks.add(length, block)
        else:
            self._forks.discard(length, block)


class _ByLength:
    """Blocks by the length of what they end. There are as few lengths as the longest request has blocks."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, None]] = {}

    def add(self, length: int, block: int) -> None:
        self._blocks.setdefault(length, {})[block] = None

    def discard(self, length: int, block: int) -> None:
        blocks = self._blocks.get(length)
        if blocks is not None and block in blocks:
            del blocks[block]
            if not blocks:
                del self._blocks[length]

    def longest(self, count: int) -> list[int]:
        """The last to come first among those of one length."""
        return list(islice(self._in_order(count), count))

    def _in_order(self, count: int) -> Iterator[int]:
        for length in heapq.nlargest(count, self._blocks):
            yield from reversed(self._blocks[length])
