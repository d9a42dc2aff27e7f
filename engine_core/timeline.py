"""When each of the last steps was planned, dispatched, run and collected, and when each of the last requests waited,
computed its prompt and decoded; written as a Chrome trace.

Times are `time.monotonic_ns()`, which all processes of one host share.
"""

import json
from collections import deque
from pathlib import Path

import numpy as np

from engine_core.request import Request

_CAPACITY = 65536
_MAX_REQUESTS = 8192
PHASES = ("queue", "prefill", "decode")
STEP, NUM_SEQS, NUM_TOKENS, PLAN, DISPATCH, WORKER_START, WORKER_END, COLLECT, SEND = range(9)


class Timeline:
    """One line of nine numbers a step; a few numbers and two short strings a request."""

    def __init__(self) -> None:
        self._lines = np.zeros((_CAPACITY, 9), np.int64)
        self._requests: deque[tuple[dict[str, str | int | None], list[float]]] = deque(maxlen=_MAX_REQUESTS)

    def planned(self, step_id: int, num_seqs: int, num_tokens: int, plan_ns: int, dispatch_ns: int) -> None:
        self._lines[step_id % _CAPACITY] = (step_id, num_seqs, num_tokens, plan_ns, dispatch_ns, 0, 0, 0, 0)

    def collected(self, step_id: int, worker_start_ns: int, worker_end_ns: int, collect_ns: int, end_ns: int) -> None:
        self._lines[step_id % _CAPACITY, WORKER_START:] = (worker_start_ns, worker_end_ns, collect_ns, end_ns)

    def ended(self, request: Request, now: float) -> None:
        """A request has left the engine, in whatever way; `now` in monotonic seconds."""
        details = {
            "request_id": request.request_id,
            "traceparent": request.trace_context,
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_cached_tokens": request.num_cached_tokens,
            "num_preemptions": request.num_preemptions,
        }
        begins = [request.arrival_time, request.scheduled_time, request.first_token_time]
        self._requests.append((details, [*(time for time in begins if time is not None), now]))

    def steps(self) -> np.ndarray:
        """The complete lines in order, int64 [num_steps, 9]."""
        lines = self._lines[self._lines[:, SEND] > 0]
        return lines[np.argsort(lines[:, STEP])]

    def write(self, path: Path) -> None:
        """Chrome's trace event format (open it in chrome://tracing or Perfetto), in microseconds.

        Steps are complete events. A request is a nestable asynchronous event with one for each phase that it came to
        inside; its arguments name the W3C trace that it belongs to.
        """
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
        for number, (request, times) in enumerate(self._requests):
            spans = [("request", times[0], times[-1]), *zip(PHASES, times, times[1:], strict=False)]
            for name, begin, end in spans:
                event = {"name": name, "cat": "request", "id": number, "pid": 0, "tid": 0}
                events.append({**event, "ph": "b", "ts": begin * 1e6, "args": request})
                events.append({**event, "ph": "e", "ts": end * 1e6})
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
