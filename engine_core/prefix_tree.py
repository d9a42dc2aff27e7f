"""Which findable blocks follow which: the prefix cache as a tree, for the inspector, kept up to date block by block.

A *chain* is the way from the first block of a prompt to one that nothing follows; a *shared prefix* is the way to a
block that is followed by several. Every change is O(1), and the longest ones are found without looking at the others.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from engine_core.digest_map import DigestMap

_ByLength = list[dict[int, None]]
"""At index n the blocks that are the n-th of their chain, the latest to come last."""


class PrefixTree:
    """Nodes are blocks; edges are digests, because a block may outlive the one before it, which may also come back."""

    def __init__(self, num_blocks: int, find: Callable[[bytes], int | None]) -> None:
        """`find` is the pool's: the findable block of a digest."""
        self._find = find
        self._lengths = array("i", bytes(4 * num_blocks))
        """Blocks from the root to this one, itself included."""
        self._parents: list[bytes] = [b""] * num_blocks
        self._last_used = array("d", bytes(8 * num_blocks))
        self._num_children = DigestMap()
        """Of digests that are followed by any."""
        self._ends: _ByLength = []
        self._forks: _ByLength = []

    def parent(self, block: int) -> bytes:
        """The digest of the block before this one, or the root's."""
        return self._parents[block]

    def length(self, block: int) -> int:
        return self._lengths[block]

    def num_continuations(self, digest: bytes) -> int:
        """How many findable blocks follow the one of that digest."""
        return self._num_children.get(digest) or 0

    def last_used(self, block: int) -> float:
        """Of a chain's end: when somebody last found, filled or left it."""
        return self._last_used[block]

    def stored(self, blocks: Sequence[int], digests: Sequence[bytes], parent: bytes, length: int, now: float) -> None:
        """Blocks that can be found from now on, each following the one before it, the first one the `length` blocks
        that end with `parent`."""
        while len(self._ends) <= length + len(blocks):
            self._ends.append({})
            self._forks.append({})
        lengths, parents, last_used = self._lengths, self._parents, self._last_used
        before = self._find(parent) if length else None
        for block, digest in zip(blocks, digests, strict=True):
            children = self._num_children.shards[parent[0]]
            count = children[parent] = children.get(parent, 0) + 1
            if before is not None:
                if count > 1:
                    self._forks[length][before] = None
                else:
                    self._ends[length].pop(before, None)  # not there while it is new itself
            length += 1
            lengths[block], parents[block], last_used[block] = length, parent, now
            before, parent = block, digest
        # What follows the last one may have been there before it.
        count = self.num_continuations(parent)
        if before is not None and count != 1:
            (self._forks if count else self._ends)[length][before] = None

    def removed(self, block: int, digest: bytes) -> None:
        """The block was given out for other contents."""
        children, length, parent = self._num_children, self._lengths[block], self._parents[block]
        count = self.num_continuations(digest)
        if count != 1:
            del (self._forks if count else self._ends)[length][block]
        count = children[parent]
        if count > 2:
            children[parent] = count - 1
            return
        before = self._find(parent)
        if count == 2:
            children[parent] = 1
            if before is not None:
                del self._forks[length - 1][before]
        else:
            del children[parent]
            if before is not None:
                self._ends[length - 1][before] = None
                self._last_used[before] = max(self._last_used[before], self._last_used[block])

    def touch(self, block: int, now: float) -> None:
        """A request found, or left, the chain that ends with this block."""
        self._last_used[block] = now

    def clear(self) -> None:
        self._num_children.clear()
        self._ends, self._forks = [], []

    def longest_chains(self, count: int) -> list[int]:
        """The last blocks of the `count` longest chains, longest first."""
        return list(islice(_longest_first(self._ends), count))

    def longest_shared_prefixes(self, count: int) -> list[int]:
        """The last blocks of the `count` longest prefixes that several chains begin with, longest first."""
        return list(islice(_longest_first(self._forks), count))

    def check_integrity(self, block_of: Mapping[bytes, int]) -> None:
        """Asserts what must hold between any two calls, for tests; `block_of` has all findable blocks."""
        children: dict[bytes, int] = {}
        for block in block_of.values():
            children[self._parents[block]] = children.get(self._parents[block], 0) + 1
        assert children == dict(self._num_children.items())
        for digest, block in block_of.items():
            length, count = self._lengths[block], children.get(digest, 0)
            assert (block in self._ends[length]) == (count == 0), (block, count)
            assert (block in self._forks[length]) == (count > 1), (block, count)
        assert sum(map(len, self._ends)) == sum(digest not in children for digest in block_of)
        assert sum(map(len, self._forks)) == sum(children.get(digest, 0) > 1 for digest in block_of)


def _longest_first(blocks: _ByLength) -> Iterator[int]:
    for of_one_length in reversed(blocks):
        yield from reversed(of_one_length)
