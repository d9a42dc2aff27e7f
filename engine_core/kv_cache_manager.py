"""Block tables and prefix reuse.

A full block's identity is the keyed hash of its tokens and of everything before them (a chain), begun from what
separates tenants: cache salt and adapter. Tables are append-only, shared blocks are never written again: a request that
shares a prefix starts with the shared full blocks and recomputes the rest, at least its last token (whose logits it
needs).

Each layer group has a block table and blocks of its own, all from one pool; tables grow together. In a group whose
layers see a sliding window, blocks that all tokens still to be computed have left behind are given back, and a prefix
is found by the blocks that its next token sees: the first entries of such a table hold `NO_BLOCK`, and nobody looks
at them.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from engine_core.block_pool import BlockPool
from engine_core.request import Request

_DIGEST_BYTES = 16


NO_BLOCK = -1


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The beginning of a request that the cache has."""

    tables: list[list[int]]
    """The entries of each group's block table, equally many."""
    num_behind: int
    """How many of them a group with a sliding window does without."""

    @property
    def num_blocks(self) -> int:
        """Blocks of tokens that were found."""
        return len(self.tables[0])


class KVCacheManager:
    """Gives requests their blocks and takes them back. `Request.block_tables` are the tables it keeps for each."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        hash_key: bytes | None = None,
        windows: tuple[int, ...] = (0,),
    ) -> None:
        """`hash_key`: agreed on where replicas must know each other's blocks; else random, so that nobody can aim.
        `windows`: the sliding window of each layer group; those that see all tokens come first and have 0."""
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.windows = windows
        self.num_groups = len(windows)
        self.num_query_tokens = 0
        """Tokens that admitted requests looked up, and how many of them were found."""
        self.num_hit_tokens = 0
        self._num_full = windows.count(0)
        self._windowed = range(self._num_full, self.num_groups)
        self._window = max(windows)
        assert windows == (0,) * self._num_full + (self._window,) * len(self._windowed), windows
        self._caching = enable_prefix_caching
        self._key = hash_key or os.urandom(32)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Entries of each block table."""
        return -(-num_tokens // self.block_size)

    def num_held(self, request: Request) -> int:
        """Blocks of all its tables together."""
        return self.num_groups * len(request.block_tables[0]) - len(self._windowed) * request.num_behind

    def find_prefix(self, request: Request, tokens: np.ndarray) -> PrefixHit:
        """Blocks that hold the beginning of `tokens` (int32 [num_tokens]): at most all but the last token's."""
        if not self._caching:
            return PrefixHit([[] for _ in self.windows], 0)
        most = (len(tokens) - 1) // self.block_size
        self._extend_chain(request, tokens, most)
        hashes = request.block_hashes[:most]
        tables = self._find_beginning(hashes)
        if not self._windowed:
            return PrefixHit(tables, 0)
        end = self._find_window(hashes[: len(tables[0])] if tables else hashes)
        behind = self._first_seen(end)
        tables = [table[:end] for table in tables]
        for group in self._windowed:
            seen = [self.pool.find(_identity(digest, group)) for digest in hashes[behind:end]]
            tables.append([NO_BLOCK] * behind + [block for block in seen if block is not None])
        return PrefixHit(tables, behind)

    def num_available_beside(self, hits: PrefixHit) -> int:
        """Blocks left to allocate once `hits` are taken: cached hits stand in the free list themselves."""
        cached = sum(
            1
            for group, table in enumerate(hits.tables)
            for block in table[self._first_held(group, hits.num_behind) :]
            if not self.pool.is_owned(block)
        )
        return self.pool.num_available - cached

    def start_table(self, request: Request, hits: PrefixHit, num_tokens: int) -> None:
        """Begins block tables with shared blocks and `num_tokens` that were asked for (for the hit rate)."""
        assert not request.block_tables
        for group, table in enumerate(hits.tables):
            self.pool.share(table[self._first_held(group, hits.num_behind) :])
        request.block_tables = [list(table) for table in hits.tables]
        request.num_behind = hits.num_behind
        request.num_registered_blocks = hits.num_blocks
        self.num_query_tokens += num_tokens
        self.num_hit_tokens += hits.num_blocks * self.block_size

    def append(self, request: Request, count: int) -> list[list[int]]:
        """`count` fresh blocks at the end of each table; the caller has looked at `pool.num_available`."""
        grown = []
        for table in request.block_tables:
            blocks = self.pool.allocate(count)
            table += blocks
            grown.append(blocks)
        return grown

    def held_entries(self, request: Request, group: int) -> tuple[int, list[int]]:
        """The part of a table that holds blocks: where it begins, and its entries."""
        first = self._first_held(group, request.num_behind)
        return first, request.block_tables[group][first:]

    def register_full(self, request: Request, tokens: np.ndarray) -> None:
        """Makes the blocks filled by `tokens` (all tokens whose KV a dispatched step writes) findable by others."""
        count = len(tokens) // self.block_size
        if not self._caching or count <= request.num_registered_blocks:
            return
        self._extend_chain(request, tokens, count)
        registered, hashes = request.num_registered_blocks, request.block_hashes
        for group, table in enumerate(request.block_tables):
            first = registered if group < self._num_full else max(registered, request.num_behind)
            for index in range(first, count):
                self.pool.register(table[index], _identity(hashes[index], group))
        request.num_registered_blocks = count

    @property
    def has_windows(self) -> bool:
        return self._window > 0

    def count_behind(self, starts: np.ndarray) -> np.ndarray:
        """How many blocks of tokens lie wholly behind the window of each token `starts`, and so of all later ones."""
        return np.maximum(0, starts - self._window + 1) // self.block_size

    def num_blocks_behind(self, behind: np.ndarray, released: np.ndarray) -> int:
        """Blocks of requests that have left `behind` in each table with a window and given back `released` of them."""
        return len(self._windowed) * int((behind - released).sum())

    def release_behind(self, request: Request, num_behind: int) -> None:
        """Gives back what the first `num_behind` entries of tables with a window still hold: no step that is in flight
        or to come reads them."""
        for group in self._windowed:
            table = request.block_tables[group]
            self.pool.release(table[request.num_behind : num_behind])
            table[request.num_behind : num_behind] = [NO_BLOCK] * (num_behind - request.num_behind)
        request.num_behind = num_behind

    def release(self, request: Request) -> None:
        """Ends the request's tables."""
        for group in range(len(request.block_tables)):
            self.pool.release(self.held_entries(request, group)[1])
        request.block_tables = []
        request.num_behind = 0
        request.num_registered_blocks = 0

    def _first_held(self, group: int, num_behind: int) -> int:
        return num_behind if group >= self._num_full else 0

    def _find_beginning(self, hashes: list[bytes]) -> list[list[int]]:
        """The tables of the groups that see all tokens, as far as all of them have every block."""
        tables: list[list[int]] = [[] for _ in range(self._num_full)]
        for group, table in enumerate(tables):
            for digest in hashes:
                block = self.pool.find(_identity(digest, group))
                if block is None:
                    break
                table.append(block)
            hashes = hashes[: len(table)]
        return [table[: len(hashes)] for table in tables]

    def _find_window(self, hashes: list[bytes]) -> int:
        """How long, in blocks, the longest beginning is for whose next token all groups with a window have all that it
        sees. Looked for from the end, where it is found at once or else behind the first gap."""
        end, begin = len(hashes), self._first_seen(len(hashes))
        index = end
        while index > begin:
            index -= 1
            if any(self.pool.find(_identity(hashes[index], group)) is None for group in self._windowed):
                end, begin = index, self._first_seen(index)
        return end

    def _first_seen(self, num_blocks: int) -> int:
        """The first block that the token behind `num_blocks` sees through the window."""
        return max(0, num_blocks * self.block_size - self._window + 1) // self.block_size

    def _extend_chain(self, request: Request, tokens: np.ndarray, count: int) -> None:
        """Computes the request's block hashes up to number `count`; each is computed once in a request's life."""
        hashes = request.block_hashes
        parent = hashes[-1] if hashes else self._root(request)
        for index in range(len(hashes), count):
            block = tokens[index * self.block_size : (index + 1) * self.block_size]
            parent = hashlib.blake2b(parent + block.tobytes(), digest_size=_DIGEST_BYTES, key=self._key).digest()
            hashes.append(parent)

    def _root(self, request: Request) -> bytes:
        """Where a chain begins; presence and length are part of it: no two pairs of salt and adapter look alike."""
        framed = b""
        for part in (request.cache_salt, request.adapter):
            encoded = b"" if part is None else part.encode()
            framed += bytes([part is not None]) + len(encoded).to_bytes(4, "little") + encoded
        return hashlib.blake2b(framed, digest_size=_DIGEST_BYTES, key=self._key).digest()


def _identity(digest: bytes, group: int) -> bytes:
    """What a block of a layer group is found by: other groups keep other layers of the same tokens."""
    return digest + group.to_bytes() if group else digest
