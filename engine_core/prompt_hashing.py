"""When prompts are hashed: a bounded piece at a time, so that a long one stalls no step; ahead where there is time."""

from collections import deque

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request, RequestStatus

MAX_HASHED_BLOCKS = 256
"""Blocks of waiting prompts that one call hashes while requests run: some 0.3 ms."""


class PromptHashing:
    """Knows which waiting requests may have prompts that are not hashed yet."""

    def __init__(self, kv: KVCacheManager) -> None:
        self._kv = kv
        self._unhashed: deque[Request] = deque()  # in order of arrival
        self._quota = 0

    def add(self, request: Request) -> None:
        """A request that waits from now on."""
        while self._unhashed and self._unhashed[0].status is not RequestStatus.WAITING:
            self._unhashed.popleft()
        self._unhashed.append(request)

    def ahead(self) -> bool:
        """Hashes a bounded part of the waiting prompts; whether more is left."""
        quota = MAX_HASHED_BLOCKS
        while self._unhashed and quota > 0:
            request = self._unhashed[0]
            num_before = self._kv.num_hashed_blocks
            if request.status is not RequestStatus.WAITING or self._kv.hash_prefix(request, quota):
                self._unhashed.popleft()
            quota -= self._kv.num_hashed_blocks - num_before
        return bool(self._unhashed)

    def begin_step(self) -> None:
        """What `complete` may hash is bounded for all of a step's calls together."""
        self._quota = MAX_HASHED_BLOCKS

    def complete(self, request: Request, runs_others: bool) -> bool:
        """Whether the request's prompt is hashed now, after a bounded piece of work where other requests run."""
        num_before = self._kv.num_hashed_blocks
        is_complete = self._kv.hash_prefix(request, self._quota if runs_others else len(request.tokens))
        self._quota -= self._kv.num_hashed_blocks - num_before
        return is_complete
