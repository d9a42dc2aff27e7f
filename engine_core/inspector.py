"""What `quire top` shows of an engine core: counters and the largest entries, never everything.

A snapshot's cost is bounded by the number of rows and of entries that were asked for, not by the size of the cache, so
that asking delays no step.
"""

import heapq
from collections import deque
from itertools import islice

import msgspec

from engine_core.ipc.inspection import (
    PAGE_BLOCKS,
    BlockCounts,
    BlockPage,
    CacheUse,
    Chain,
    InspectedRequest,
    Inspection,
)
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import digest_and_group
from engine_core.request import Request
from engine_core.scheduler import Scheduler

WINDOW_SECONDS = 60.0
_SAMPLE_SECONDS = 1.0


class Inspector:
    """Keeps a sample of the counters for each second with a step, for rates over the last minute."""

    def __init__(self, scheduler: Scheduler, replica: int, now: float) -> None:
        self._scheduler = scheduler
        self._replica = replica
        self._started = now
        self._samples: deque[tuple[float, CacheUse]] = deque([(now, self._counters())])

    def step(self, now: float) -> None:
        """Called before a step changes the counters; `now` in monotonic seconds."""
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self._counters()))
            self._forget_before(now - WINDOW_SECONDS)

    def inspect(self, limit: int, num_steps: int, now: float) -> Inspection:
        """At most `limit` entries of each kind."""
        scheduler, kv = self._scheduler, self._scheduler.kv
        pool, counters = kv.pool, self._counters()
        self._forget_before(now - WINDOW_SECONDS)
        return Inspection(
            replica=self._replica,
            uptime_seconds=now - self._started,
            num_steps=num_steps,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            blocks=BlockCounts(
                total=pool.num_blocks,
                free=pool.num_available - pool.num_cached,
                owned=pool.num_owned,
                shared=pool.num_shared,
                cached=pool.num_cached,
                tokens_per_block=kv.block_size,
            ),
            since_start=counters,
            last_minute=_difference(counters, self._samples[0][1]),
            chains=[_chain(kv, block, now) for block in kv.tree.longest_chains(limit)],
            shared_prefixes=[_chain(kv, block, now) for block in kv.tree.longest_shared_prefixes(limit)],
            requests=[self._request(request, now) for request in self._largest_requests(limit)],
        )

    def _counters(self) -> CacheUse:
        kv = self._scheduler.kv
        return CacheUse(
            num_query_tokens=kv.num_query_tokens,
            num_hit_tokens=kv.num_hit_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_evictions=kv.pool.num_evictions,
        )

    def _forget_before(self, time: float) -> None:
        """Keeps one sample of before `time`, which the window is measured against; without steps it stays the last."""
        while len(self._samples) > 1 and self._samples[1][0] <= time:
            self._samples.popleft()

    def _largest_requests(self, limit: int) -> list[Request]:
        running = heapq.nlargest(limit, self._scheduler.running, key=self._scheduler.kv.num_held)
        return [*running, *islice(self._scheduler.waiting, limit - len(running))]

    def _request(self, request: Request, now: float) -> InspectedRequest:
        table = self._scheduler.table
        return InspectedRequest(
            request_id=request.request_id,
            status=request.status.value,
            num_blocks=self._scheduler.kv.num_held(request),
            num_tokens=len(request.tokens) if request.row < 0 else int(table.num_known[request.row]),
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
            age_seconds=now - request.arrival_time,
        )


def block_page(kv: KVCacheManager, cursor: int, epoch: int) -> BlockPage:
    """The findable ones of the block numbers from `cursor` on, of the first layer group."""
    end = min(cursor + PAGE_BLOCKS, kv.pool.num_blocks)
    digests, parents = [], []
    for block in range(cursor, end):
        digest = kv.pool.digest_of(block)
        if digest is not None and digest_and_group(digest)[1] == 0:
            digests.append(digest)
            parents.append(kv.tree.parent(block))
    return BlockPage(
        epoch=epoch,
        digests=b"".join(digests),
        parents=b"".join(parents),
        num_tokens=kv.block_size,
        cursor=end if end < kv.pool.num_blocks else None,
    )


def _chain(kv: KVCacheManager, block: int, now: float) -> Chain:
    digest = kv.pool.digest_of(block)
    assert digest is not None, block
    num_blocks = kv.tree.length(block)
    return Chain(
        digest=digest.hex(),
        num_blocks=num_blocks,
        num_tokens=num_blocks * kv.block_size,
        num_owners=kv.pool.reference_count(block),
        num_continuations=kv.tree.num_continuations(digest),
        idle_seconds=now - kv.tree.last_used(block),
    )


def _difference(now: CacheUse, before: CacheUse) -> CacheUse:
    values = zip(msgspec.structs.astuple(now), msgspec.structs.astuple(before), strict=True)
    return CacheUse(**dict(zip(CacheUse.__struct_fields__, (a - b for a, b in values), strict=True)))
