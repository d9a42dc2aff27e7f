"""When the next step is planned and how many new prompts it takes: how long a request that has just come has to wait.

A step that computes a prompt of a large model takes tens of milliseconds. If the step behind it were planned at once, a
request that arrives meanwhile could join only the one after. So planning waits until shortly before the running step is
expected to end. And a few waiting prompts are computed one after the other: twice as many tokens take twice as long, so
two prompts in one step would only let the first wait for the second. Where many wait, throughput counts, and steps are
as large as they may be.

What a step will take follows from the fastest long steps of late: expecting too little costs nothing but some of the
gain. Time is an argument, in nanoseconds of one clock.
"""

from collections import deque

from engine_core.config.engine_config import SchedulerConfig

FEW_WAITING = 8
"""Requests that may wait while steps are paced. Planning a step with more takes longer than `_LEAD_NS`."""
_LONG_STEP_NS = 10_000_000
"""Steps that take so long go by their tokens; what shorter ones take goes by the weights, or by the sequences."""
_LEAD_NS = 4_000_000
"""From the beginning of a step's planning to its start on the device, with room for a late wake-up."""
_CAUTION = 0.9
"""Share of the expected time that counts: padding and long contexts make steps differ."""
_ENOUGH_NS = 20_000_000
"""A step that new prompts make so long takes no more of a few waiting ones."""
_VERY_FEW = 3
"""With more, a step takes twice as long: the last of them waits less, because large products are faster."""
_NUM_RATES = 16


class StepPacing:
    """Is told of every step that is dispatched and collected, in order."""

    def __init__(self, config: SchedulerConfig, may_hold: bool = True) -> None:
        """`may_hold`: nothing else than the device's work would be late if a step is planned late."""
        self._config = config
        self._may_hold = may_hold
        self._inflight: deque[tuple[int, int]] = deque()
        """Tokens and time of dispatch of the steps under way."""
        self._rates: deque[float] = deque(maxlen=_NUM_RATES)
        """Nanoseconds a token of the last long steps."""
        self._last_step_ns = 0
        self._last_end_ns = 0

    def dispatched(self, num_tokens: int, now_ns: int) -> None:
        self._inflight.append((num_tokens, now_ns))

    def collected(self, started_ns: int, ended_ns: int) -> None:
        """The oldest step under way has run from `started_ns` to `ended_ns`."""
        num_tokens, _ = self._inflight.popleft()
        self._last_step_ns, self._last_end_ns = ended_ns - started_ns, ended_ns
        if self._last_step_ns >= _LONG_STEP_NS:
            self._rates.append(self._last_step_ns / num_tokens)

    def wait_ns(self, num_waiting: int, now_ns: int) -> int | None:
        """How long the next step's planning should wait, with `num_waiting` requests in the queue; None: until a step
        is collected, because as many are under way as may be."""
        if len(self._inflight) >= self._config.most_in_flight(self._last_step_ns):
            return None
        if not self._may_hold or not self._inflight or not self._rates or num_waiting > FEW_WAITING:
            return 0
        num_tokens = sum(tokens for tokens, _ in self._inflight)
        started_ns = max(self._last_end_ns, self._inflight[0][1])
        return max(0, started_ns + int(num_tokens * min(self._rates) * _CAUTION) - _LEAD_NS - now_ns)

    def enough_tokens(self, num_waiting: int) -> int:
        """Tokens of new prompts from which on a step takes no more of `num_waiting` ones."""
        if not self._rates or num_waiting > FEW_WAITING:
            return self._config.max_num_batched_tokens
        enough_ns = _ENOUGH_NS if num_waiting <= _VERY_FEW else 2 * _ENOUGH_NS
        return max(1, int(enough_ns / min(self._rates)))  # with 0 nothing would ever start, and no event would come
