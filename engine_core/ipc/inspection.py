"""What an engine core tells of itself when asked to `inspect`, and of its cache page by page: the results' types.

`quire top` prints them; docs/protocol.md describes them for others.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_ENTRIES = 1000
PAGE_BLOCKS = 4096
"""Block numbers that one page of a snapshot covers: so many are looked at in about a millisecond."""


class InspectArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the method `inspect`."""

    limit: Annotated[int, Meta(ge=0, le=MAX_ENTRIES)] = 20
    """The most entries of each list."""


class BlockCounts(msgspec.Struct, frozen=True, kw_only=True):
    """free + owned + cached = total; the shared ones are among the owned."""

    total: int
    free: int
    owned: int
    shared: int
    """Owned by several requests."""
    cached: int
    """Owned by nobody; can still be found."""
    tokens_per_block: int


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The way from a prompt's first block to one that is followed by nothing (a chain) or by several."""

    digest: str
    """Of its last block, in hex."""
    num_blocks: int
    num_tokens: int
    num_owners: int
    """Requests that hold its last block, and so all of it."""
    num_continuations: int
    """Blocks that follow its last one."""
    idle_seconds: float
    """Since somebody last found, filled or left it."""


class InspectedRequest(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    status: str
    num_blocks: int
    num_tokens: int
    """Prompt and output."""
    num_cached_tokens: int
    """Found in the cache when it was admitted."""
    num_preemptions: int
    age_seconds: float


class CacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """Over some time."""

    num_query_tokens: int
    """Tokens that admitted requests looked up."""
    num_hit_tokens: int
    num_preemptions: int
    num_evictions: int

    @property
    def hit_rate(self) -> float:
        return self.num_hit_tokens / self.num_query_tokens if self.num_query_tokens else 0.0


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `inspect`. Lists have the largest entries only."""

    replica: int
    uptime_seconds: float
    num_steps: int
    num_running: int
    num_waiting: int
    blocks: BlockCounts
    since_start: CacheUse
    last_minute: CacheUse
    chains: list[Chain]
    """The longest ones."""
    shared_prefixes: list[Chain]
    """The longest beginnings that several chains have in common."""
    requests: list[InspectedRequest]
    """Running ones with the most blocks, then waiting ones."""


class SnapshotArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the method `block_snapshot`."""

    cursor: Annotated[int, Meta(ge=0)] = 0


class AbortArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the method `abort_requests`."""

    prefix: Annotated[str, Meta(min_length=16, max_length=256)]
    """Of the ids of requests; long enough that it cannot be everybody's."""


class BlockPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `block_snapshot`: some of the blocks that can be found now."""

    epoch: int
    digests: bytes  # [num_blocks, DIGEST_BYTES]
    parents: bytes  # [num_blocks, DIGEST_BYTES]
    num_tokens: int
    """Tokens in each block."""
    cursor: int | None
    """Where the next page begins; None: this is the last."""
