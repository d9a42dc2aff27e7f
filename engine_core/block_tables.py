"""The block tables of running rows: they grow with what a step computes, and let go of what no step will read.

All rows of a step are handled together. Where blocks are too few, rows at the end of the policy order are preempted.
"""

from collections.abc import Callable

import numpy as np

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.plan_writer import PlanWriter
from engine_core.request import Request
from engine_core.retirement import Retirement
from engine_core.row_table import RowTable
from engine_core.step_records import ScheduledStep


class BlockTables:
    """The scheduler's hand on the cache manager; decides nothing but who must make room."""

    def __init__(
        self,
        table: RowTable,
        kv: KVCacheManager,
        retirement: Retirement,
        in_order: Callable[[np.ndarray], np.ndarray],
        preempt: Callable[[Request], None],
    ) -> None:
        """`in_order` sorts rows by policy; `preempt` sends a running request back to the queue."""
        self._table = table
        self._kv = kv
        self._retirement = retirement
        self._in_order = in_order
        self._preempt = preempt

    def grow(self, writer: PlanWriter, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Appends the entries that the rows' new tokens need in each table, preempting where blocks are too few."""
        table, kv = self._table, self._kv
        missing = -(-(table.num_computed[rows] + counts) // kv.block_size) - table.num_blocks[rows]
        grows = missing > 0
        if not grows.any():
            return rows, counts
        if kv.num_groups * int(missing[grows].sum()) > kv.pool.num_available:
            stays = self._make_room(rows, missing)
            rows, counts, missing, grows = rows[stays], counts[stays], missing[stays], grows[stays]
        growing, needed = rows[grows], missing[grows]
        blocks = kv.append([table.request(row) for row in growing.tolist()], needed.tolist())
        writer.add_entries(growing, table.num_blocks[growing], needed, kv.num_groups, blocks)
        table.num_blocks[growing] += needed
        return rows, counts

    def _make_room(self, rows: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Which of the rows run: those that need no blocks, and in policy order those for which there are enough.

        Running rows at the end of that order are preempted for the others, so no row that was granted its blocks is.
        """
        table, pool = self._table, self._kv.pool
        needed = dict(zip(rows.tolist(), (self._kv.num_groups * missing).tolist(), strict=True))
        victims = self._in_order(np.flatnonzero(table.running)).tolist()
        num_granted = 0
        stays = np.ones(len(table.requests), np.bool_)
        for row in self._in_order(rows[missing > 0]).tolist():
            while table.running[row] and pool.num_available < num_granted + needed[row]:
                num_returning = self._retirement.num_blocks + self._num_blocks_behind()
                if pool.num_available + num_returning >= num_granted + needed[row]:
                    break  # blocks of ended requests and behind windows come back with the steps in flight
                self._preempt(table.request(victims.pop()))
            if not table.running[row]:
                continue
            stays[row] = pool.num_available >= num_granted + needed[row]
            num_granted += needed[row] if stays[row] else 0
        return (table.running & stays)[rows]

    def _num_blocks_behind(self) -> int:
        """Blocks that running requests hold for steps in flight only: no step after them sees these."""
        if not self._kv.has_windows:
            return 0
        rows = np.flatnonzero(self._table.running)
        behind = self._kv.count_behind(self._table.num_computed[rows])
        return self._kv.num_blocks_behind(behind, self._table.num_behind[rows])

    def register_known(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Blocks that this step fills with known tokens can be found from now on, by requests of this step too."""
        first = self._table.num_computed[rows]
        ends = np.minimum(first + counts, self._table.num_known[rows])
        fills = ends // self._kv.block_size > first // self._kv.block_size
        self._register_blocks(rows[fills], ends[fills])

    def register_sampled(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """All tokens but the last of the `counts` collected ones are computed for certain: blocks that they end are
        complete."""
        num_certain = self._table.num_known[rows] - 1
        ends_block = (num_certain % self._kv.block_size < counts) & self._table.running[rows]
        self._register_blocks(rows[ends_block], num_certain[ends_block])

    def _register_blocks(self, rows: np.ndarray, num_tokens: np.ndarray) -> None:
        """Blocks of the rows' first `num_tokens` tokens can be found by others."""
        if len(rows) == 0:
            return
        history, counts = self._table.history, zip(rows.tolist(), num_tokens.tolist(), strict=True)
        requests = [self._table.request(row) for row in rows.tolist()]
        self._kv.register_full(requests, [history[row, :count] for row, count in counts])

    def release_behind(self, step: ScheduledStep) -> bool:
        """Steps after the collected one begin where it ended, so nothing before that place's window is read again.

        Whether a prompt let go of more blocks than it took, which a row that decodes never does.
        """
        table = self._table
        rows = step.rows
        behind = self._kv.count_behind(table.num_settled[rows])
        num_blocks = np.where(table.running[rows], behind - table.num_behind[rows], 0)
        leaves = num_blocks > 0
        if not leaves.any():
            return False
        rows, behind = rows[leaves], behind[leaves]
        self._kv.release_behind([table.request(row) for row in rows.tolist()], behind.tolist())
        table.num_behind[rows] = behind
        return bool((num_blocks > 1).any())
