"""The guard against thrash: how many blocks must stay free for a waiting request to be admitted.

Blocks are not reserved, so running requests may grow until there are none left, and one is preempted and computed
again. That is right now and then and ruinous as a habit. The rule: a request is admitted when the blocks for all its
known tokens are free beside those that running prompts still need for theirs, and beyond that 2^p more for each request
that will then run (no more than it can grow), where p is the greatest number of preemptions that one of them has had.

So whoever runs gets on by at least 2^p blocks before blocks are short again, and each preemption doubles that. Once 2^p
is the longest request nothing can run short while the victim runs: a request is preempted at most
1 + ceil(log2(blocks of the longest request)) times, whatever the load and the policy.

These are blocks of tokens, entries of a request's block tables. A layer group that sees all tokens has a block for each
of them; one with a sliding window no more than the next chunk sees, whatever the length, once blocks that only steps in
flight still read have come back.
"""

import numpy as np

from engine_core.config.layer_groups import BlockDemand
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import PrefixHit
from engine_core.request import Request
from engine_core.row_table import RowTable

_MAX_EXPONENT = 24
"""2^24 blocks are more than any request has."""


class GrowthRoom:
    """The room that the requests of one step's beginning need; it follows the admissions of that step."""

    def __init__(self, table: RowTable, kv: KVCacheManager, demand: BlockDemand) -> None:
        self._kv = kv
        self._demand = demand
        self._num_preemptions = 0
        self._num_promised = 0
        self._newcomers: list[tuple[int, int, int, int]] = []
        """What the arrays hold of the rows that ran before, for each request that was admitted since."""
        rows = np.flatnonzero(table.running)
        planned, num_entries = table.num_planned[rows], table.num_blocks[rows]
        self._known = np.maximum(-(-planned // kv.block_size), num_entries)
        self._most = -(-table.limit[rows] // kv.block_size)
        self._window = np.full(len(rows), demand.most_of_window(1 + table.num_speculative_tokens))
        rest = planned - table.num_computed[rows]
        for index in np.flatnonzero(rest > 1):
            self._window[index] = self._most_of_window(int(rest[index]))
        num_seen = num_entries - kv.count_behind(table.num_computed[rows])
        self._held = demand.num_full * num_entries + demand.num_windowed * num_seen
        self._promise(int(table.num_preemptions[rows].max(initial=0)))

    def needed_by(self, request: Request, hit: PrefixHit) -> int:
        """Blocks that must be free for the request to be admitted, beside those of the hit on the devices."""
        if request.num_preemptions > self._num_preemptions:
            self._promise(request.num_preemptions)
        kv, known = self._kv, len(request.tokens)
        num_entries = min(kv.num_blocks_for(known) + self._room, kv.num_blocks_for(request.limit))
        num_seen = min(num_entries, self._most_of_window(known - hit.num_blocks * kv.block_size))
        own = self._demand.num_full * num_entries + self._demand.num_windowed * num_seen
        return self._num_promised + own - sum(map(len, hit.found))

    def admitted(self, request: Request, num_computed: int) -> None:
        """It runs now behind `num_computed` tokens that were found, and what it still needs is promised to it."""
        kv, known = self._kv, len(request.tokens)
        window = self._most_of_window(known - num_computed) if self._demand.num_windowed else 0
        newcomer = kv.num_blocks_for(known), kv.num_blocks_for(request.limit), window, kv.num_held(request)
        self._newcomers.append(newcomer)
        self._num_promised += self._promise_to(*newcomer)

    @property
    def _room(self) -> int:
        return 1 << min(self._num_preemptions, _MAX_EXPONENT)

    def _most_of_window(self, num_rest: int) -> int:
        """Blocks that a group with a window keeps at most, for a request with so many tokens to compute."""
        return self._demand.most_of_window(min(num_rest, self._demand.max_chunk))

    def _promise(self, num_preemptions: int) -> None:
        self._num_preemptions = num_preemptions
        num_entries = np.minimum(self._known + self._room, self._most)
        promised = self._demand.num_full * num_entries - self._held
        if self._demand.num_windowed:
            promised += self._demand.num_windowed * np.minimum(num_entries, self._window)
        self._num_promised = int(promised.sum()) + sum(self._promise_to(*newcomer) for newcomer in self._newcomers)

    def _promise_to(self, known: int, most: int, window: int, held: int) -> int:
        """The same for one of the newcomers."""
        num_entries = min(known + self._room, most)
        return self._demand.num_full * num_entries + self._demand.num_windowed * min(num_entries, window) - held
