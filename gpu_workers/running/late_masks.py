"""Which masks of a step are there when it samples, and which rows it skips because theirs is not.

Nothing here knows what computes or samples: a runner says when its forward pass ended.
"""

import time
from collections.abc import Callable

import numpy as np

from engine_core.ipc.ring import SPIN_NS, Ring
from engine_core.ipc.step import LateMasks, StepPlan, StepShape, late_layout

Forward = Callable[[], tuple[int, int] | None]
"""When a step's forward pass ended (monotonic) and how long it took, both in ns; None while it runs."""

ALONE_NS = 10_000_000
"""How long a step waits at least where all of its rows have masks: a wait holds up no other row, and a step that skips
rows has computed them for nothing."""
BESIDE_OTHERS = 8
"""A step with rows that need no mask waits for this share of its forward pass at most."""
_POLL_MS = 1
"""How often a forward pass that still runs is looked at."""


class MaskArrivals:
    """One per worker. A missing mask holds other rows up for an eighth of a forward pass, and once only: steps that
    were planned before the engine core knew do not wait for the same row again."""

    def __init__(self, ring: Ring, shape: StepShape, sleep: Callable[[int], None]) -> None:
        """`sleep(ms)` returns when a late part may have come, or after that time."""
        layout = late_layout(shape)
        self.parts = [LateMasks.over(layout, slot) for slot in ring.late_slots]
        """The late part of each slot."""
        self._ring = ring
        self._sleep = sleep
        self._was_skipped = np.zeros(shape.max_num_seqs, np.bool_)

    def wait(self, sequence: int, plan: StepPlan, forward: Forward) -> np.ndarray:
        """Waits for the late part of plan `sequence`. Returns which scheduled rows have to be skipped, int64 [n]."""
        masked = plan.mask_rows[: plan.num_masks].astype(np.int64)
        rows = plan.rows[masked]
        # A plan that gives a row its last token was made after the row's earlier steps were collected.
        may_wait = ~self._was_skipped[rows] | (plan.num_given[masked] > 0)
        is_missing = np.zeros(len(masked), np.bool_)
        if not self._ring.is_late_published(sequence):
            arrived = self.parts[self._ring.slot_of(sequence)].sequences[: len(masked)]
            is_missing = self._wait(sequence, arrived, may_wait, len(masked) == plan.num_seqs, forward)
        self._was_skipped[rows] = is_missing
        return masked[is_missing]

    def _wait(
        self, sequence: int, arrived: np.ndarray, may_wait: np.ndarray, is_alone: bool, forward: Forward
    ) -> np.ndarray:
        """Which masks have not come in time, bool [num_masks]."""
        spin_until = time.monotonic_ns() + SPIN_NS
        is_missing: np.ndarray
        while (is_missing := arrived != sequence).any():
            now, timeout_ms = time.monotonic_ns(), _POLL_MS
            if (ended := forward()) is not None:
                ended_ns, took_ns = ended
                longest_ns = max(took_ns, ALONE_NS) if is_alone else took_ns // BESIDE_OTHERS
                until = ended_ns + (longest_ns if may_wait[is_missing].any() else 0)
                if now >= until:
                    break
                timeout_ms = -(-(until - now) // 1_000_000)
            if now >= spin_until:
                self._sleep(timeout_ms)
        return is_missing
