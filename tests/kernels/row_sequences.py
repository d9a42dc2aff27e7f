"""One row's bad words and thinking budget on the CPU: what its last tokens rule out, or force, next."""

from collections import deque

import numpy as np

from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS
from engine_core.ipc.step import THINKING_ENDED, THINKING_NOT_BEGUN


class RowSequences:
    """Told of every token that the row samples."""

    def __init__(self, record: np.void, bulk: np.ndarray) -> None:
        """From what a plan says of the row (`engine_core/ipc/step.py`)."""
        offset, count = int(record["sequences_offset"]), int(record["num_sequences"])
        lines = bulk[offset : offset + (count + 1) * MAX_SEQUENCE_TOKENS].reshape(-1, MAX_SEQUENCE_TOKENS)
        sequences: list[list[int]] = [[token for token in line[::-1] if token >= 0] for line in lines[:-1].tolist()]
        self._start, self._end, *self._bad_words = sequences
        self._budget = int(record["thinking_budget"])
        self._begin = int(record["thinking_begin"])
        first = int(record["num_prompt_tokens"])
        self._num_outputs = int(record["num_output_tokens"])
        known = range(first + max(0, self._num_outputs - MAX_SEQUENCE_TOKENS), first + self._num_outputs)
        latest = [int(lines[-1][position % MAX_SEQUENCE_TOKENS]) for position in known]
        self._latest = deque(latest, maxlen=MAX_SEQUENCE_TOKENS)

    def sampled(self, token_id: int) -> None:
        self._latest.append(token_id)
        self._num_outputs += 1
        if self._budget < 0:
            return
        if self._begin == THINKING_NOT_BEGUN:
            if self._ends_with(self._start):
                self._begin = self._num_outputs
        elif self._begin >= 0 and self._num_outputs - self._begin >= len(self._end) and self._ends_with(self._end):
            self._begin = THINKING_ENDED

    def ruled_out(self) -> list[int]:
        """Tokens that would complete a bad word."""
        return [word[-1] for word in self._bad_words if self._ends_with(word[:-1])]

    def forced(self) -> int | None:
        """The token that has to come, because the budget is used up."""
        num_over = self._num_outputs - self._begin - self._budget
        if self._budget < 0 or self._begin < 0 or num_over < 0:
            return None
        # A request may go on behind an output that is further than that.
        return self._end[num_over % len(self._end)]

    def _ends_with(self, tokens: list[int]) -> bool:
        count = len(tokens)
        return count <= len(self._latest) and all(self._latest[i - count] == tokens[i] for i in range(count))
