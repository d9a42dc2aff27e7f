"""Block tables and prefix reuse.

A full block's identity is the keyed hash of its tokens and of everything before them (a chain), begun from what
separates tenants: cache salt and adapter. Tables are append-only, shared blocks are never written again: a request that
shares a prefix starts with the shared full blocks and recomputes the rest, at least its last token (whose logits it
needs).
"""

import hashlib
import os

import numpy as np

from engine_core.block_events import BlockEventRecorder
from engine_core.block_pool import BlockPool
from engine_core.host_tier import HostTier
from engine_core.ipc.messages import DIGEST_BYTES
from engine_core.prefix_tree import PrefixTree
from engine_core.recent_chains import RecentChains
from engine_core.request import Request


class KVCacheManager:
    """Gives requests their blocks and takes them back. `Request.block_ids` is the block table it keeps for each."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        hash_key: bytes | None = None,
        host: HostTier | None = None,
    ) -> None:
        """`hash_key`: agreed on where replicas must know each other's blocks; else random, so that nobody can aim.
        `host`: where evicted blocks go, and come back from."""
        self.pool = BlockPool(num_blocks)
        self.pool.observer = self
        self.host = host
        self.tree = PrefixTree(num_blocks, self.pool.find)
        self.events = BlockEventRecorder(block_size)
        self.now = 0.0
        """The step's time, for what is remembered of a chain's last use."""
        self.block_size = block_size
        self.num_query_tokens = 0
        """Tokens that admitted requests looked up, and how many of them were found."""
        self.num_hit_tokens = 0
        self.num_hashed_blocks = 0
        self._caching = enable_prefix_caching
        self._key = hash_key or os.urandom(32)
        self._recent = RecentChains(block_size)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def hash_prefix(self, request: Request, max_blocks: int) -> bool:
        """Computes up to `max_blocks` more of the hashes that `find_prefix` needs; whether all of them are there."""
        if not self._caching:
            return True
        tokens, hashes = request.tokens, request.block_hashes
        needed = (len(tokens) - 1) // self.block_size
        if len(hashes) >= needed:
            return True
        end = len(hashes) + max_blocks
        if not hashes and max_blocks > 0:
            self._extend_chain(request, tokens, 1)
            hashes += self._recent.common(hashes[0], tokens[: needed * self.block_size])[1:]
            end += len(hashes) - 1
        self._extend_chain(request, tokens, min(needed, end))
        if len(hashes) < needed:
            return False
        self._recent.remember(tokens[: needed * self.block_size], hashes)
        return True

    def find_prefix(self, request: Request, tokens: np.ndarray) -> list[int]:
        """Blocks that hold the beginning of `tokens` (int32 [num_tokens]): at most all but the last token's."""
        if not self._caching:
            return []
        self._extend_chain(request, tokens, (len(tokens) - 1) // self.block_size)
        blocks = []
        for digest in request.block_hashes[: (len(tokens) - 1) // self.block_size]:
            block = self.pool.find(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_on_host(self, request: Request, num_hits: int, num_tokens: int) -> int:
        """How many blocks the host has of the chain behind its first `num_hits`, which `find_prefix` has just found in
        the first `num_tokens` tokens."""
        if self.host is None:
            return 0
        count = 0
        for digest in request.block_hashes[num_hits : (num_tokens - 1) // self.block_size]:
            if digest not in self.host or self.pool.find(digest) is not None:
                break
            count += 1
        return count

    def bring_back(self, request: Request, hits: list[int], count: int) -> list[int]:
        """Loads the `count` blocks of the chain behind `hits` from the host; returns `hits` and those. They are cached
        blocks like any others from now on: the step that is being planned may use them already."""
        assert self.host is not None
        digests = request.block_hashes[len(hits) : len(hits) + count]
        # Neither the hits nor what is loaded may make room for it.
        self.pool.share(hits)
        slots = self.host.hold(digests)
        blocks = sorted(self.pool.allocate(count))  # so that blocks and slots form runs
        for block, digest in zip(blocks, digests, strict=True):
            self.pool.register(block, digest)
        self._tell_stored(request, blocks, len(hits))
        self.host.load(slots, blocks)
        found = hits + blocks
        self.pool.release(found)
        return found

    def num_available_beside(self, hits: list[int]) -> int:
        """Blocks left to allocate once `hits` are taken: cached hits stand in the free list themselves."""
        return self.pool.num_available - sum(1 for block in hits if not self.pool.is_owned(block))

    def start_table(self, request: Request, hits: list[int], num_tokens: int) -> None:
        """Begins a block table with shared blocks and `num_tokens` that were asked for (for the hit rate)."""
        assert not request.block_ids
        self.pool.share(hits)
        if hits:
            self.tree.touch(hits[-1], self.now)
        request.block_ids = list(hits)
        request.num_registered_blocks = len(hits)
        self.num_query_tokens += num_tokens
        self.num_hit_tokens += len(hits) * self.block_size

    def append(self, request: Request, count: int) -> list[int]:
        """`count` fresh blocks at the end of the table; the caller has looked at `pool.num_available`."""
        blocks = self.pool.allocate(count)
        request.block_ids += blocks
        return blocks

    def register_full(self, request: Request, tokens: np.ndarray) -> None:
        """Makes the blocks filled by `tokens` (all tokens whose KV a dispatched step writes) findable by others."""
        count = len(tokens) // self.block_size
        if not self._caching or count <= request.num_registered_blocks:
            return
        self._extend_chain(request, tokens, count)
        start = request.num_registered_blocks
        for index in range(start, count):
            if not self.pool.register(request.block_ids[index], request.block_hashes[index]):
                self._tell_stored(request, request.block_ids[start:index], start)
                start = index + 1
        self._tell_stored(request, request.block_ids[start:count], start)
        request.num_registered_blocks = count

    def _tell_stored(self, request: Request, blocks: list[int], start: int) -> None:
        """Those blocks have just become findable: what stands from number `start` on in the request's chain."""
        if not blocks:
            return
        digests = request.block_hashes[start : start + len(blocks)]
        parent = request.block_hashes[start - 1] if start else self._root(request)
        self.tree.stored(blocks, digests, parent, start, self.now)
        if self.events.is_recording:
            self.events.stored(digests, parent)

    def removed(self, block: int, digest: bytes) -> None:
        """The pool gave a cached block out for other contents, which its new owner has not written yet."""
        if self.host is not None:
            self.host.evicted(block, digest)
        self.tree.removed(block, digest)
        if self.events.is_recording:
            self.events.removed(digest)

    def cleared(self) -> None:
        """The pool forgot everything."""
        self.tree.clear()
        if self.events.is_recording:
            self.events.cleared()

    def release(self, request: Request) -> None:
        """Ends the request's table."""
        if request.num_registered_blocks:
            self._touch_end(request)
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.num_registered_blocks = 0

    def _touch_end(self, request: Request) -> None:
        """The chain that a request leaves ends with its last block, or with an equal one that was there before."""
        block = self.pool.find(request.block_hashes[request.num_registered_blocks - 1])
        if block is not None:
            self.tree.touch(block, self.now)

    def _extend_chain(self, request: Request, tokens: np.ndarray, count: int) -> None:
        """Computes the request's block hashes up to number `count`; each is computed once in a request's life."""
        hashes = request.block_hashes
        parent = hashes[-1] if hashes else self._root(request)
        self.num_hashed_blocks += max(0, count - len(hashes))
        for index in range(len(hashes), count):
            block = tokens[index * self.block_size : (index + 1) * self.block_size]
            parent = hashlib.blake2b(parent + block.tobytes(), digest_size=DIGEST_BYTES, key=self._key).digest()
            hashes.append(parent)

    def _root(self, request: Request) -> bytes:
        """Where a chain begins; presence and length are part of it: no two pairs of salt and adapter look alike."""
        framed = b""
        for part in (request.cache_salt, request.adapter):
            encoded = b"" if part is None else part.encode()
            framed += bytes([part is not None]) + len(encoded).to_bytes(4, "little") + encoded
        return hashlib.blake2b(framed, digest_size=DIGEST_BYTES, key=self._key).digest()
