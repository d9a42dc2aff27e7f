"""The set of blocks that an engine core could reuse, kept up to date from its events: what a router asks.

    async with EngineClient(endpoint) as client:
        cached = CachedBlocks(client)
        following = asyncio.create_task(cached.follow())
        ...
        cached.num_leading(digests_of_a_prompt)

`docs/protocol.md` says how a block's digest is computed.
"""

from collections.abc import Iterable

from frontend.client.block_events import BlockBatch, Cleared, Stored
from frontend.client.engine_client import EngineClient


class CachedBlocks:
    """Follows one engine core. `digests` is right up to what is under way, once `is_complete`.

    They are the first layer group's: of a model with sliding windows, whose other groups may have lost what a prefix
    needs, `num_leading` is the most that could be reused.
    """

    def __init__(self, client: EngineClient) -> None:
        self.digests: set[bytes] = set()
        self.is_complete = False
        self._client = client

    async def follow(self) -> None:
        """Runs until the core ends, which raises `EngineError`."""
        async for batch in self._client.block_events():
            if batch.gap:
                await self._begin_anew()
            self._apply(batch)

    def num_leading(self, digests: Iterable[bytes]) -> int:
        """How many blocks of a prompt could be reused."""
        count = 0
        for digest in digests:
            if digest not in self.digests:
                break
            count += 1
        return count

    async def _begin_anew(self) -> None:
        """Takes a snapshot page by page. Events of that time wait in the stream and are applied to it afterwards: they
        say of each block last what is true last, so it does no harm that pages may know of them already."""
        self.digests.clear()
        self.is_complete = False
        async for page in self._client.block_snapshot():
            self.digests.update(page)
        self.is_complete = True

    def _apply(self, batch: BlockBatch) -> None:
        for change in batch.changes:
            if isinstance(change, Cleared):
                self.digests.clear()
            elif change.group == 0:
                merge = self.digests.update if isinstance(change, Stored) else self.digests.difference_update
                merge(change.digests)
