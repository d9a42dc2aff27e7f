"""The engine core's mirror of the workers' rows: counters of all running requests as arrays.

What a step does to a row that merely decodes is arithmetic on these arrays, so a step's cost in Python does not grow
with the number of running requests. `requests[row]` keeps its request until the row is free again.
"""

import mmap

import numpy as np

from engine_core.request import Request

_TOUCHED_TOKENS = 4096
"""Of each row, whose memory is there from the start: most requests need no more, and then wait for no page."""


class RowTable:
    """Rows 0 .. num_rows - 1; all arrays are indexed by row."""

    def __init__(
        self, num_rows: int, max_model_len: int, num_penalty_rows: int, num_speculative_tokens: int = 0
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        """Tokens that a row may draft in a step."""
        self.requests: list[Request | None] = [None] * num_rows
        self.running = np.zeros(num_rows, np.bool_)
        """Whether the row's request runs: not so once it ended or was preempted, though the row is still taken."""
        self.generation = np.zeros(num_rows, np.int64)
        """Grows when the results of the row's request stop counting; those of an older generation are dropped."""
        self.tenancy = np.zeros(num_rows, np.int64)
        """How often the row has been taken."""
        self.last_step = np.zeros(num_rows, np.int64)
        """The last step that names the row."""
        self.num_known = np.zeros(num_rows, np.int32)
        """Prompt and collected output."""
        self.num_planned = np.zeros(num_rows, np.int32)
        """The same with the most that dispatched steps can yield; the row has no more tokens than these."""
        self.num_computed = np.zeros(num_rows, np.int32)
        """Tokens whose KV dispatched steps have written or will, with all that they drafted."""
        self.num_settled = np.zeros(num_rows, np.int32)
        """Tokens whose KV collected steps have written: later steps begin there."""
        self.awaits_mask = np.zeros(num_rows, np.bool_)
        """Whether a step skipped the row because its mask was late: it is planned again once the mask is there."""
        self.may_fall_short = np.zeros(num_rows, np.bool_)
        """Whether steps may yield fewer tokens than were planned: masks may be late, drafts may be wrong."""
        self.limit = np.zeros(num_rows, np.int32)
        """Most tokens, prompt and output."""
        self.num_blocks = np.zeros(num_rows, np.int32)
        """Entries of the row's block tables."""
        self.first_block = np.zeros(num_rows, np.int32)
        """The first entry of the row's first block table."""
        self.num_behind = np.zeros(num_rows, np.int32)
        """Those of them that lie behind the sliding window; see `Request.num_behind`."""
        self.num_preemptions = np.zeros(num_rows, np.int32)
        self.arrival_number = np.zeros(num_rows, np.int64)
        self.earliest_stop = np.zeros(num_rows, np.int32)
        """Number of known tokens from which on EOS and stop tokens count (prompt + min_tokens)."""
        self.num_at_arrival = np.zeros(num_rows, np.int32)
        self.num_prompt_tokens = np.zeros(num_rows, np.int32)
        self.matcher = np.zeros(num_rows, np.int64)
        """Of the request's grammar; 0: there is none."""
        self.last_token_time = np.zeros(num_rows, np.float64)
        """Of the last token collected; before the first one, the request's arrival."""
        self.checks_eos = np.zeros(num_rows, np.bool_)
        self.has_stop_ids = np.zeros(num_rows, np.bool_)
        self.num_logprobs = np.zeros(num_rows, np.int32)
        """Alternatives that the client wants beside each token; -1: no log-probabilities at all."""
        self.wants_scores = np.zeros(num_rows, np.bool_)
        """Whether steps still have to be planned that find log-probabilities of the row's prompt."""
        self.handle = np.zeros(num_rows, np.uint32)
        self.client_number = np.zeros(num_rows, np.int32)
        # One row per request and as wide as the context, but untouched pages of zeros cost nothing. They are small
        # ones: numpy would ask for huge pages, which take the kernel up to 7 ms to find and clear when a row is taken.
        memory = mmap.mmap(-1, 4 * num_rows * max_model_len)
        self.history = np.frombuffer(memory, np.int32).reshape(num_rows, max_model_len)
        self.history[:, :_TOUCHED_TOKENS] = 0
        """Token ids: the first `num_known` of a row count."""
        self._free = list(range(num_rows - 1, -1, -1))
        self._free_penalty_slots = list(range(num_penalty_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def has_room_for(self, request: Request) -> bool:
        """Whether there is a row, and what the request needs beside it."""
        return bool(self._free) and (bool(self._free_penalty_slots) or not request.sampling.uses_penalties)

    def take(self, request: Request, num_computed: int) -> int:
        """Gives the request a row and copies its tokens there."""
        row = self._free.pop()
        request.row = row
        if request.sampling.uses_penalties:
            request.penalty_slot = self._free_penalty_slots.pop()
        self.requests[row] = request
        self.tenancy[row] += 1
        self.running[row] = True
        count = len(request.tokens)
        self.history[row, :count] = request.tokens
        self.num_known[row] = self.num_planned[row] = count
        self.num_computed[row] = self.num_settled[row] = num_computed
        self.awaits_mask[row] = False
        self.may_fall_short[row] = request.matcher > 0 or self.num_speculative_tokens > 0
        self.limit[row] = request.limit
        self.num_blocks[row] = len(request.block_tables[0])
        self.first_block[row] = request.block_tables[0][0] if request.block_tables[0] else -1
        self.num_behind[row] = request.num_behind
        self.num_preemptions[row] = request.num_preemptions
        self.arrival_number[row] = request.arrival_number
        self.earliest_stop[row] = request.num_prompt_tokens + request.sampling.min_tokens
        self.num_at_arrival[row] = request.num_prompt_tokens + request.num_prior_tokens
        self.last_token_time[row] = request.last_token_time or request.arrival_time
        self.num_prompt_tokens[row] = request.num_prompt_tokens
        self.matcher[row] = request.matcher
        self.checks_eos[row] = not request.sampling.ignore_eos or request.matcher > 0
        self.has_stop_ids[row] = bool(request.stop_token_ids)
        self.num_logprobs[row] = -1 if request.sampling.logprobs is None else request.sampling.logprobs
        self.wants_scores[row] = request.wants_scores
        self.handle[row] = request.handle
        self.client_number[row] = request.client_number
        return row

    def request(self, row: int) -> Request:
        """The request in a row that is taken."""
        request = self.requests[row]
        assert request is not None, row
        return request

    def find_stops(
        self, rows: np.ndarray, tokens: np.ndarray, numbers: np.ndarray, eos_token_ids: tuple[int, ...]
    ) -> np.ndarray:
        """Where a new token is one that its row stops at, bool [num_tokens]. All arguments are [num_tokens]: `numbers`
        says how many tokens the row has before this one."""
        is_eos = np.zeros(len(rows), np.bool_)
        for eos in eos_token_ids:
            is_eos |= tokens == eos
        stops = is_eos & self.checks_eos[rows]
        for index in self.has_stop_ids[rows].nonzero()[0]:
            stops[index] |= int(tokens[index]) in self.request(rows[index]).stop_token_ids
        return stops & (numbers >= self.earliest_stop[rows])

    def drop_results(self, row: int) -> None:
        """What is still in flight for the row's request is of no interest any more (it finished or was aborted)."""
        self.generation[row] += 1

    def give_back(self, row: int) -> None:
        """The row can be used again: no step in flight names it."""
        request = self.request(row)
        request.last_token_time = float(self.last_token_time[row])
        request.row = -1
        if request.penalty_slot >= 0:
            self._free_penalty_slots.append(request.penalty_slot)
            request.penalty_slot = -1
        self.requests[row] = None
        self._free.append(row)

    def describe(self, row: int) -> str:
        """The row's state, for the text of a failed assertion."""
        counters = {
            name: int(getattr(self, name)[row]) for name in ("num_known", "num_planned", "num_computed", "limit")
        }
        return f"row {row} of {self.requests[row]} with {counters}"

    def known_tokens(self, row: int) -> np.ndarray:
        """The known token ids, int32 [num_known], a view."""
        return self.history[row, : self.num_known[row]]
