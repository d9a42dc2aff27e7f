"""When each step was planned, dispatched, run and collected: a ring of the last steps, written as a Chrome trace.

Times are `time.monotonic_ns()`, which all processes of one host share.
"""

import json
from pathlib import Path

import numpy as np

_CAPACITY = 65536
STEP, NUM_SEQS, NUM_TOKENS, PLAN, DISPATCH, WORKER_START, WORKER_END, COLLECT, SEND = range(9)


class Timeline:
    """One line of nine numbers a step."""

    def __init__(self) -> None:
        self._lines = np.zeros((_CAPACITY, 9), np.int64)

    def planned(self, step_id: int, num_seqs: int, num_tokens: int, plan_ns: int, dispatch_ns: int) -> None:
        self._lines[step_id % _CAPACITY] = (step_id, num_seqs, num_tokens, plan_ns, dispatch_ns, 0, 0, 0, 0)

    def collected(self, step_id: int, worker_start_ns: int, worker_end_ns: int, collect_ns: int, end_ns: int) -> None:
        self._lines[step_id % _CAPACITY, WORKER_START:] = (worker_start_ns, worker_end_ns, collect_ns, end_ns)

    def steps(self) -> np.ndarray:
        """The complete lines in order, int64 [num_steps, 9]."""
        lines = self._lines[self._lines[:, SEND] > 0]
        return lines[np.argsort(lines[:, STEP])]

    def write(self, path: Path) -> None:
        """Chrome's trace event format (open it in chrome://tracing or Perfetto): complete events, microseconds."""
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": tid, "args": {"name": name}}
            for tid, name in enumerate(("engine core", "worker"))
        ]
        for line in self.steps().tolist():
            details = {"step": line[STEP], "num_seqs": line[NUM_SEQS], "num_tokens": line[NUM_TOKENS]}
            for name, tid, start, end in (
                ("plan", 0, line[PLAN], line[DISPATCH]),
                ("run", 1, line[WORKER_START], line[WORKER_END]),
                ("update", 0, line[COLLECT], line[SEND]),
            ):
                span = {"ts": start / 1000, "dur": (end - start) / 1000}
                events.append({"ph": "X", "name": name, "pid": 0, "tid": tid, "args": details, **span})
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
