"""What an engine core does once after each busy time: it collects garbage and checks its pool of blocks."""

from engine_core import garbage
from engine_core.block_pool import BlockPool

_MAX_CHECKED_BLOCKS = 65536
"""Larger pools are not checked: the check would delay the next request by more than some 30 ms."""


class IdleCheck:
    def __init__(self, pool: BlockPool) -> None:
        self.is_due = False
        """Whether anything was added since the last check."""
        self._pool = pool

    def run(self) -> None:
        """To be called when nothing has come for a while and nothing runs."""
        if not self.is_due:
            return
        self.is_due = False
        garbage.collect()
        if self._pool.num_blocks <= _MAX_CHECKED_BLOCKS:
            self._pool.check_integrity()
