"""Requests that stopped running while steps in flight still name their rows: who gets what back, and when."""

from collections import deque

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request, RequestStatus
from engine_core.row_table import RowTable


class Retirement:
    """Rows and blocks return to their free lists only with the last step that names them."""

    def __init__(self, table: RowTable, kv: KVCacheManager) -> None:
        self.last_collected = 0
        """The last step whose result is known."""
        self.num_blocks = 0
        """Blocks in the tables of requests that wait here."""
        self._table = table
        self._kv = kv
        self._retiring: deque[Request] = deque()

    def add(self, request: Request) -> None:
        """A request that ended or was preempted."""
        if self._table.last_step[request.row] <= self.last_collected:
            self._give_back(request)
        else:
            self._retiring.append(request)
            self.num_blocks += self._kv.num_held(request)

    def collected(self, step_id: int) -> None:
        """A step's result was taken in."""
        self.last_collected = step_id
        still: deque[Request] = deque()
        for request in self._retiring:
            if self._table.last_step[request.row] <= step_id:
                self.num_blocks -= self._kv.num_held(request)
                self._give_back(request)
            else:
                still.append(request)
        self._retiring = still

    def _give_back(self, request: Request) -> None:
        """Frees row and blocks; a preempted request takes its tokens along."""
        if request.status is RequestStatus.WAITING:
            request.tokens = self._table.known_tokens(request.row).copy()
        self._kv.release(request)
        self._table.give_back(request.row)
