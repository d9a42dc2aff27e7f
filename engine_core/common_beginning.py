"""How many blocks the rows that decode have in common from their beginning on: one system prompt, many users.

A worker can then read these blocks once for all rows instead of once for each. Asked in every step, so what is known of
rows that were there before is kept, and in a step whose rows differ from the first block on nothing else is looked at.
"""

import numpy as np

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.row_table import RowTable

MIN_ROWS = 16
"""With fewer a worker has nothing to gain."""


class CommonBeginning:
    """Of the rows in one table. Layers with windows see too little of a beginning for it to matter, and layer groups
    have no table in common: such models have none."""

    def __init__(self, table: RowTable, kv: KVCacheManager, min_rows: int = MIN_ROWS) -> None:
        self._table, self._block_size = table, kv.block_size
        self._min_rows = min_rows
        self._applies = kv.num_groups == 1 and not kv.has_windows
        self._blocks: list[int] = []
        """What all rows compared so far begin with."""
        self._compared = np.full(len(table.requests), -1, np.int64)
        """The tenancy of the row that was compared."""
        self._shortest = -1
        """The row that has no more than this in common with the others, or -1: when it goes, there may be more."""

    def num_keys(self, rows: np.ndarray) -> int:
        """Keys in the common blocks of `rows` [num_seqs] that are computed by now in all of them."""
        table = self._table
        if len(rows) < self._min_rows or not self._applies:
            return 0
        first_blocks = table.first_block[rows]
        if (first_blocks != first_blocks[0]).any():
            return 0
        if not self._blocks or self._blocks[0] != first_blocks[0] or not self._is_there(self._shortest):
            self._blocks = list(table.request(rows[0]).block_tables[0])
            self._compared[:] = -1
            self._shortest = -1
        for row in rows[self._compared[rows] != table.tenancy[rows]].tolist():
            num_common = _num_equal(self._blocks, table.request(row).block_tables[0])
            if num_common < len(self._blocks):
                del self._blocks[num_common:]
                self._shortest = row
            self._compared[row] = table.tenancy[row]
        # A step that yields fewer tokens than were planned leaves the row behind, and steps in flight with it.
        num_uncertain = np.where(table.may_fall_short[rows], table.num_planned[rows] - table.num_known[rows], 0)
        certain = table.num_computed[rows] - num_uncertain
        return min(len(self._blocks) * self._block_size, int(certain.min()))

    def _is_there(self, row: int) -> bool:
        return row < 0 or (bool(self._table.running[row]) and self._compared[row] == self._table.tenancy[row])


def _num_equal(blocks: list[int], others: list[int]) -> int:
    """How many entries of two lists are equal from the beginning on."""
    count = min(len(blocks), len(others))
    if blocks[:count] == others[:count]:
        return count
    return next(index for index in range(count) if blocks[index] != others[index])
