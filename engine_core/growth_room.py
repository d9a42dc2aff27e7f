"""The guard against thrash: how many blocks must stay free for a waiting request to be admitted.

Blocks are not reserved, so running requests may grow until there are none left, and one is preempted and computed
again. That is right now and then and ruinous as a habit. The rule: a request is admitted when the blocks for all its
known tokens are free beside those that running prompts still need for theirs, and beyond that 2^p more for each request
that will then run (no more than it can grow), where p is the greatest number of preemptions that one of them has had.

So whoever runs gets on by at least 2^p blocks before blocks are short again, and each preemption doubles that. Once 2^p
is the longest request nothing can run short while the victim runs: a request is preempted at most
1 + ceil(log2(blocks of the longest request)) times, whatever the load and the policy.
"""

import numpy as np

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from engine_core.row_table import RowTable

_MAX_EXPONENT = 24
"""2^24 blocks are more than any request has."""


class GrowthRoom:
    """The room that the requests of one step's beginning need; it follows the admissions of that step."""

    def __init__(self, table: RowTable, kv: KVCacheManager) -> None:
        self._table = table
        self._kv = kv
        self._num_preemptions = 0
        self._num_promised = 0
        rows = np.flatnonzero(table.running)
        self._missing = -(-(table.num_known[rows] + table.num_inflight[rows]) // kv.block_size) - table.num_blocks[rows]
        self._most = -(-table.limit[rows] // kv.block_size) - table.num_blocks[rows]
        self._promise(int(table.num_preemptions[rows].max(initial=0)))

    def needed_by(self, request: Request) -> int:
        """Blocks that must be free or hits for the request to be admitted."""
        if request.num_preemptions > self._num_preemptions:
            self._promise(request.num_preemptions)
        kv, room = self._kv, 1 << min(self._num_preemptions, _MAX_EXPONENT)
        own = min(kv.num_blocks_for(len(request.tokens)) + room, kv.num_blocks_for(request.limit))
        return self._num_promised + own

    def admitted(self, request: Request) -> None:
        """It runs now, and what it still needs is promised to it."""
        kv, held = self._kv, len(request.block_ids)
        self._missing = np.append(self._missing, kv.num_blocks_for(len(request.tokens)) - held)
        self._most = np.append(self._most, kv.num_blocks_for(request.limit) - held)
        self._promise(self._num_preemptions)

    def _promise(self, num_preemptions: int) -> None:
        room = 1 << min(num_preemptions, _MAX_EXPONENT)
        self._num_preemptions = num_preemptions
        self._num_promised = int(np.minimum(np.maximum(self._missing, 0) + room, self._most).sum())
