"""Block tables and prefix reuse.

A full block's identity is the keyed hash of its tokens and of everything before them (a chain), begun from what
separates tenants: cache salt and adapter. Tables are append-only, shared blocks are never written again: a request that
shares a prefix starts with the shared full blocks and recomputes the rest, at least its last token (whose logits it
needs).

Each layer group has a block table and blocks of its own, all from one pool; tables grow together. In a group whose
layers see a sliding window, blocks that all tokens still to be computed have left behind are given back: the first
entries of such a table hold `NO_BLOCK`, and nobody looks at them. `prefix_search.py` says which blocks a prefix needs.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from engine_core.block_events import BlockEventRecorder
from engine_core.block_pool import BlockPool
from engine_core.config.engine_config import EngineConfig
from engine_core.config.hash_key import read_hash_key
from engine_core.host_tier import HostTier, make_host_tier
from engine_core.ipc.messages import DIGEST_BYTES
from engine_core.prefix_search import NO_BLOCK, PrefixHit, PrefixSearch, digest_and_group, identity
from engine_core.prefix_tree import PrefixTree
from engine_core.recent_chains import RecentChains
from engine_core.request import Request


class KVCacheManager:
    """Gives requests their blocks and takes them back. `Request.block_tables` are the tables it keeps for each."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        hash_key: bytes | None = None,
        host: HostTier | None = None,
        windows: tuple[int, ...] = (0,),
    ) -> None:
        """`hash_key`: agreed on where replicas must know each other's blocks; else random, so that nobody can aim.
        `host`: where evicted blocks go, and come back from. `windows`: the sliding window of each layer group; those
        that see all tokens come first and have 0."""
        self.pool = BlockPool(num_blocks)
        self.pool.observer = self
        self.host = host
        self.tree = PrefixTree(num_blocks, self.pool.find)
        """Of the first layer group's blocks."""
        self.events = BlockEventRecorder(block_size)
        self.now = 0.0
        """The step's time, for what is remembered of a chain's last use."""
        self.block_size = block_size
        self.windows = windows
        self.num_groups = len(windows)
        self.num_query_tokens = 0
        """Tokens that admitted requests looked up, and how many of them were found."""
        self.num_hit_tokens = 0
        self.num_hashed_blocks = 0
        self._num_full = windows.count(0)
        self._windowed = range(self._num_full, self.num_groups)
        self._window = max(windows)
        assert windows == (0,) * self._num_full + (self._window,) * len(self._windowed), windows
        self._search = PrefixSearch(self.pool, host, block_size, windows)
        self._caching = enable_prefix_caching
        self._key = hash_key or os.urandom(32)
        self._recent = RecentChains(block_size)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Entries of each block table."""
        return -(-num_tokens // self.block_size)

    def num_held(self, request: Request) -> int:
        """Blocks of all its tables together."""
        return sum(map(len, request.block_tables)) - len(self._windowed) * request.num_behind

    def hash_prefix(self, request: Request, max_blocks: int) -> bool:
        """Computes up to `max_blocks` more of the hashes that `find_prefix` needs; whether all of them are there."""
        if not self._caching:
            return True
        tokens, hashes = request.tokens, request.block_hashes
        needed = (len(tokens) - 1) // self.block_size
        if len(hashes) >= needed:
            return True
        end = len(hashes) + max_blocks
        if not hashes and request.first_sample is not None:
            hashes += request.first_sample.block_hashes[: min(needed, request.num_prompt_tokens // self.block_size)]
        if not hashes and max_blocks > 0:
            self._extend_chain(request, tokens, 1)
            hashes += self._recent.common(hashes[0], tokens[: needed * self.block_size])[1:]
            end += len(hashes) - 1
        self._extend_chain(request, tokens, min(needed, end))
        if len(hashes) < needed:
            return False
        self._recent.remember(tokens[: needed * self.block_size], hashes)
        return True

    def find_prefix(self, request: Request, tokens: np.ndarray) -> PrefixHit:
        """Blocks that hold the beginning of `tokens` (int32 [num_tokens]): at most all but the last token's."""
        most = self._most_blocks(request, len(tokens))
        self._extend_chain(request, tokens, most)
        return self._search.find(request.block_hashes[:most])

    def _most_blocks(self, request: Request, num_tokens: int) -> int:
        """How many blocks may be found of so many tokens."""
        if not self._caching:
            return 0
        most = (num_tokens - 1) // self.block_size
        # What predicts a token of the prompt that is still to be scored has to be computed.
        return min(most, (request.num_scored - 1) // self.block_size) if request.wants_scores else most

    def next_block(self, request: Request, hit: PrefixHit) -> bytes | None:
        """What the block is found by that the hit ends before; None: the request has no more that could be found."""
        most = self._most_blocks(request, len(request.tokens))
        return next(
            (name for name in request.block_hashes[hit.num_blocks : most] if self.pool.find(name) is None), None
        )

    def bring_back(self, request: Request, hit: PrefixHit, count: int) -> PrefixHit:
        """Loads the first `count` of the hit's blocks that are in host memory; returns the hit with them. They are
        cached blocks like any others from now on: the step that is being planned may use them already."""
        assert self.host is not None
        entries = hit.on_host[:count]
        names = [identity(request.block_hashes[index], group) for group, index in entries]
        # Neither what was found nor what is loaded may make room for it.
        for found in hit.found:
            self.pool.share(found)
        slots = self.host.hold(names)
        blocks = sorted(self.pool.allocate(len(entries)))  # so that blocks and slots form runs
        tables = [list(table) for table in hit.tables]
        private = self.pool.register(blocks, names)
        assert not private, "what is on the devices is not brought back"
        for block, (group, index) in zip(blocks, entries, strict=True):
            tables[group][index] = block
            self._tell_stored(request, group, [block], index)
        self.host.load(slots, blocks)
        hit = PrefixHit(tables, hit.num_behind, hit.on_host[count:])
        for found in hit.found:
            self.pool.release(found)
        return hit

    def num_available_beside(self, hit: PrefixHit) -> int:
        """Blocks left to allocate once the hit is taken: cached blocks stand in the free list themselves."""
        return self.pool.num_available - sum(map(self.pool.count_available, hit.found))

    def start_table(self, request: Request, hit: PrefixHit, num_tokens: int) -> None:
        """Begins block tables with shared blocks and `num_tokens` that were asked for (for the hit rate)."""
        assert not request.block_tables
        assert not hit.on_host
        for found in hit.found:
            self.pool.share(found)
        if hit.num_blocks:
            self.tree.touch(hit.tables[0][-1], self.now)
        request.block_tables = [list(table) for table in hit.tables]
        request.num_behind = hit.num_behind
        request.num_registered_blocks = hit.num_blocks
        self.num_query_tokens += num_tokens
        self.num_hit_tokens += hit.num_blocks * self.block_size

    def append(self, requests: Sequence[Request], counts: Sequence[int]) -> list[int]:
        """Fresh blocks at the end of each request's tables, as many as its count; the caller has looked at
        `pool.num_available`. Returns them by request, then by group."""
        blocks = self.pool.allocate(self.num_groups * sum(counts))
        first = 0
        for request, count in zip(requests, counts, strict=True):
            for table in request.block_tables:
                table += blocks[first : first + count]
                first += count
        return blocks

    def held_entries(self, request: Request, group: int) -> tuple[int, list[int]]:
        """The part of a table that holds blocks: where it begins, and its entries."""
        first = request.num_behind if group >= self._num_full else 0
        return first, request.block_tables[group][first:]

    def register_full(self, requests: Sequence[Request], tokens: Sequence[np.ndarray]) -> None:
        """Makes the blocks filled by `tokens` (all tokens of a request whose KV a dispatched step writes) findable by
        others."""
        if not self._caching:
            return
        filled: list[tuple[Request, int, int]] = []
        digests: list[bytes] = []
        for request, known in zip(requests, tokens, strict=True):
            start, end = request.num_registered_blocks, len(known) // self.block_size
            if start < end:
                assert start >= request.num_behind, request
                self._extend_chain(request, known, end)
                filled.append((request, start, end))
                digests += request.block_hashes[start:end]
                request.num_registered_blocks = end
        for group in range(self.num_groups if filled else 0):
            blocks: list[int] = []
            for request, start, end in filled:
                blocks += request.block_tables[group][start:end]
            names = [identity(digest, group) for digest in digests] if group else digests
            private = self.pool.register(blocks, names)
            if group == 0 or self.events.is_recording:
                self._tell_registered(filled, group, blocks, private)

    def _tell_registered(
        self, filled: list[tuple[Request, int, int]], group: int, blocks: list[int], private: list[int]
    ) -> None:
        """`blocks` has entries `start` to `end` of each request in turn; all can be found but the `private` ones."""
        offset, gaps = 0, iter([*private, len(blocks)])
        gap = next(gaps)
        for request, start, end in filled:
            after = offset + end - start
            while gap < after:
                self._tell_stored(request, group, blocks[offset:gap], start)
                start += gap + 1 - offset
                offset, gap = gap + 1, next(gaps)
            self._tell_stored(request, group, blocks[offset:after], start)
            offset = after

    def _tell_stored(self, request: Request, group: int, blocks: list[int], start: int) -> None:
        """Those blocks have just become findable: what stands from number `start` on in the group's table."""
        if not blocks:
            return
        digests = request.block_hashes[start : start + len(blocks)]
        parent = request.block_hashes[start - 1] if start else self._root(request)
        if group == 0:
            self.tree.stored(blocks, digests, parent, start, self.now)
        if self.events.is_recording:
            self.events.stored(digests, parent, group)

    @property
    def has_windows(self) -> bool:
        return self._window > 0

    def count_behind(self, starts: np.ndarray) -> np.ndarray:
        """How many blocks of tokens lie wholly behind the window of each token `starts`, and so of all later ones."""
        return np.maximum(0, starts - self._window + 1) // self.block_size

    def num_blocks_behind(self, behind: np.ndarray, released: np.ndarray | int = 0) -> int:
        """Blocks of requests that have left `behind` in each table with a window and given back `released` of them."""
        return len(self._windowed) * int((behind - released).sum())

    def release_behind(self, requests: Sequence[Request], num_behind: Sequence[int]) -> None:
        """Gives back what each request's first `num_behind` entries of tables with a window still hold: no step that
        is in flight or to come reads them."""
        left: list[int] = []
        for request, end in zip(requests, num_behind, strict=True):
            first = request.num_behind
            nothing = [NO_BLOCK] * (end - first)
            for table in request.block_tables[self._num_full :]:
                left += table[first:end]
                table[first:end] = nothing
            request.num_behind = end
        self.pool.release(left)

    def removed(self, block: int, name: bytes) -> None:
        """The pool gave a cached block out for other contents, which its new owner has not written yet."""
        if self.host is not None:
            self.host.evicted(block, name)
        digest, group = digest_and_group(name)
        if group == 0:
            self.tree.removed(block, digest)
        if self.events.is_recording:
            self.events.removed(digest, group)

    def cleared(self) -> None:
        """The pool forgot everything."""
        self.tree.clear()
        if self.events.is_recording:
            self.events.cleared()

    def forget_all(self) -> int:
        """From now on nothing that was computed so far is found; what runs goes on. Returns how many blocks it was."""
        num_found = self.pool.num_findable + (0 if self.host is None else len(self.host))
        self.pool.forget_all()
        if self.host is not None:
            self.host.forget_all()
        return num_found

    def release(self, request: Request) -> None:
        """Ends the request's tables."""
        if request.num_registered_blocks:
            self._touch_end(request)
        held = [self.held_entries(request, group)[1] for group in range(len(request.block_tables))]
        if len(held) == 1:
            self.pool.release(held[0])
        else:  # the ends of all groups' chains before what leads to them: a prefix needs its blocks in every group
            from_end = zip_longest(*map(reversed, held))
            self.pool.release([block for entries in from_end for block in entries if block is not None][::-1])
        request.block_tables = []
        request.num_behind = 0
        request.num_registered_blocks = 0

    def _touch_end(self, request: Request) -> None:
        """The chain that a request leaves ends with its last block, or with an equal one that was there before."""
        block = self.pool.find(request.block_hashes[request.num_registered_blocks - 1])
        if block is not None:
            self.tree.touch(block, self.now)

    def _extend_chain(self, request: Request, tokens: np.ndarray, count: int) -> None:
        """Computes the request's block hashes up to number `count`; each is computed once in a request's life."""
        hashes, size = request.block_hashes, self.block_size
        if count <= len(hashes):
            return
        parent = hashes[-1] if hashes else self._root(request)
        self.num_hashed_blocks += count - len(hashes)
        data = tokens[len(hashes) * size : count * size].tobytes()
        step = size * tokens.itemsize
        for offset in range(0, len(data), step):
            block = parent + data[offset : offset + step]
            parent = hashlib.blake2b(block, digest_size=DIGEST_BYTES, key=self._key).digest()
            hashes.append(parent)

    def _root(self, request: Request) -> bytes:
        """Where a chain begins; presence and length are part of it: no two pairs of salt and adapter look alike."""
        if request.chain_root is None:
            framed = b""
            for part in (request.cache_salt, request.adapter):
                encoded = b"" if part is None else part.encode()
                framed += bytes([part is not None]) + len(encoded).to_bytes(4, "little") + encoded
            request.chain_root = hashlib.blake2b(framed, digest_size=DIGEST_BYTES, key=self._key).digest()
        return request.chain_root


def make_kv_cache_manager(config: EngineConfig, hash_key: bytes | None = None) -> KVCacheManager:
    """The one that an engine's configuration describes; `hash_key` where that names none. Raises `ConfigError` for a
    hash key that cannot be read."""
    cache = config.cache
    key_file = cache.prefix_hash_key_file
    return KVCacheManager(
        cache.num_blocks,
        cache.block_size,
        cache.enable_prefix_caching,
        hash_key=hash_key if key_file is None else read_hash_key(Path(key_file)),
        host=make_host_tier(config),
        windows=config.layer_groups().windows,
    )
