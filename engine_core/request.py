"""One request's life in the engine core: what was asked, where it stands, and the only ways between statuses."""

from collections.abc import Sequence
from enum import Enum

import numpy as np

from engine_core.ipc.sampling_params import SamplingParams


class RequestStatus(Enum):
    WAITING = "waiting"
    """In the queue: new, or sent back by a preemption."""
    RUNNING = "running"
    """Owns a row and blocks; steps may be in flight for it."""
    FINISHED = "finished"
    """Its final reply is on its way; row and blocks return once no step in flight names them."""


TRANSITIONS: dict[RequestStatus, frozenset[RequestStatus]] = {
    RequestStatus.WAITING: frozenset({RequestStatus.RUNNING, RequestStatus.FINISHED}),
    RequestStatus.RUNNING: frozenset({RequestStatus.WAITING, RequestStatus.FINISHED}),
    RequestStatus.FINISHED: frozenset(),
}


class Request:
    """A request and the host's side of its state. Counters that change in every step live in the `RowTable`."""

    __slots__ = (
        "adapter",
        "arrival_number",
        "arrival_time",
        "block_hashes",
        "block_tables",
        "cache_salt",
        "chain_root",
        "client",
        "client_number",
        "deadline",
        "first_sample",
        "first_token_time",
        "handle",
        "last_token_time",
        "limit",
        "matcher",
        "num_behind",
        "num_cached_tokens",
        "num_preemptions",
        "num_prior_tokens",
        "num_prompt_tokens",
        "num_registered_blocks",
        "num_scored",
        "penalty_slot",
        "priority",
        "request_id",
        "row",
        "sampling",
        "scheduled_time",
        "share",
        "share_key",
        "status",
        "stop_token_ids",
        "tokens",
        "trace_context",
    )

    def __init__(
        self,
        *,
        request_id: str,
        client: bytes,
        client_number: int = 0,
        handle: int,
        first_sample: "Request | None" = None,
        prompt_token_ids: Sequence[int] | np.ndarray,
        output_token_ids: Sequence[int] | np.ndarray = (),
        sampling: SamplingParams,
        max_total_tokens: int,
        arrival_time: float,
        arrival_number: int,
        priority: int = 0,
        deadline: float | None = None,
        share_key: str | None = None,
        cache_salt: str | None = None,
        adapter: str | None = None,
        trace_context: str | None = None,
    ) -> None:
        """`max_total_tokens` bounds prompt and output together (context length or cache, whichever is smaller).
        `first_sample` came just before with the same prompt, and neither has output yet."""
        self.request_id = request_id
        self.client = client
        self.client_number = client_number
        self.handle = handle
        self.first_sample = first_sample
        self.tokens: np.ndarray = (
            np.concatenate([np.asarray(prompt_token_ids, np.int32), np.asarray(output_token_ids, np.int32)])
            if first_sample is None
            else first_sample.tokens
        )
        """Prompt and output as known while the request waits; while it runs, the row's history goes on from here."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_prior_tokens = len(output_token_ids)
        """Output that came with the request (a resume)."""
        self.sampling = sampling
        wanted = max_total_tokens if sampling.max_tokens is None else self.num_prompt_tokens + sampling.max_tokens
        self.limit = min(wanted, max_total_tokens)
        self.stop_token_ids = frozenset(sampling.stop_token_ids)
        self.priority = priority
        self.share_key = share_key
        self.share = -1
        """The number that the fair-share policy gave to the share."""
        self.deadline = deadline
        self.cache_salt = cache_salt
        self.adapter = adapter
        self.trace_context = trace_context
        self.status = RequestStatus.WAITING
        self.row = -1
        """Kept after a preemption until no step in flight names the row."""
        self.penalty_slot = -1
        self.matcher = 0
        """Its number in the grammar process; 0: no grammar binds the output."""
        self.block_tables: list[list[int]] = []
        """One for each layer group, all of the same length; empty while the request has no blocks."""
        self.num_behind = 0
        """Leading entries of the tables of groups with a sliding window that hold no block any more."""
        self.chain_root: bytes | None = None
        """What the hash of the first block follows, once it is known."""
        self.block_hashes: list[bytes] = []
        self.num_registered_blocks = 0
        self.num_scored = 1 if sampling.prompt_logprobs is not None else self.num_prompt_tokens
        """Leading tokens of the prompt whose log-probabilities are not wanted any more: the first has none."""
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.arrival_number = arrival_number
        """Grows from request to request; decides between equal ranks."""
        self.arrival_time = arrival_time
        self.scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None

    def transition(self, status: RequestStatus) -> None:
        """The only way to change the status."""
        assert status in TRANSITIONS[self.status], (self.request_id, self.status, status)
        self.status = status

    @property
    def wants_scores(self) -> bool:
        """Whether there are tokens of the prompt whose log-probabilities are still wanted."""
        return self.num_scored < self.num_prompt_tokens

    def __repr__(self) -> str:
        return f"Request({self.request_id!r}, {self.status.value}, row={self.row})"
