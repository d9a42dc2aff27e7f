"""What an engine core was at when an exception ended it: a line for its log, and the same in short."""

import logging
from collections.abc import Sequence

import numpy as np

from engine_core.row_table import RowTable

logger = logging.getLogger(__name__)

_MAX_REASON_CHARS = 200
_MAX_NAMES = 8
"""Rows and requests that a line names; of more it says how many there are."""


class WorkReport:
    """Kept up to date by the loop, at the cost of some assignments a step."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self.begin("starting")

    def begin(self, activity: str, step_id: int = 0, rows: np.ndarray | None = None) -> None:
        """`activity` goes on behind "while". `rows`: those of the step that it is done for; None: those that run."""
        self._activity, self._step_id, self._rows = activity, step_id, rows

    def explain(self, error: Exception) -> str:
        """Logs what failed, for which plan, and returns it in short, without a full stop."""
        rows = np.flatnonzero(self._table.running) if self._rows is None else self._rows
        requests = [self._table.requests[row] for row in rows.tolist()]
        names = [request.request_id for request in requests if request is not None]
        step = f" step {self._step_id}" if self._step_id else ""
        reason = (str(error).splitlines() or ["no reason given"])[0][:_MAX_REASON_CHARS]
        summary = f"{type(error).__name__} while {self._activity}{step} ({reason})"
        plan = f"rows {_some([str(row) for row in rows.tolist()])}; requests {_some(names)}"
        logger.error("%s: %s.", summary, plan, exc_info=error)
        return summary


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES] or ["none"]) + (f" and {rest} more" if rest > 0 else "")
