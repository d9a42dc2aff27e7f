"""One request's life in the engine core: what was asked, where it stands, and the only ways between statuses."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
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


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Request:
    """A request and the host's side of its state. Counters that change in every step live in the `RowTable`."""

    request_id: str
    client: bytes
    client_number: int = 0
    handle: int
    first_sample: "Request | None" = None
    """It came just before with the same prompt, and neither has output yet."""
    prompt_token_ids: InitVar[Sequence[int] | np.ndarray]
    output_token_ids: InitVar[Sequence[int] | np.ndarray] = ()
    max_total_tokens: InitVar[int]
    """Bounds prompt and output together (context length or cache, whichever is smaller)."""
    sampling: SamplingParams
    priority: int = 0
    share_key: str | None = None
    deadline: float | None = None
    cache_salt: str | None = None
    adapter: str | None = None
    trace_context: str | None = None
    arrival_number: int
    """Grows from request to request; decides between equal ranks."""
    arrival_time: float
    scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    tokens: np.ndarray = field(init=False)
    """Prompt and output as known while the request waits; while it runs, the row's history goes on from here."""
    num_prompt_tokens: int = field(init=False)
    num_prior_tokens: int = field(init=False)
    """Output that came with the request (a resume)."""
    limit: int = field(init=False)
    """Most tokens, prompt and output."""
    stop_token_ids: frozenset[int] = field(init=False)
    share: int = -1
    """The number that the fair-share policy gave to the share."""
    status: RequestStatus = RequestStatus.WAITING
    row: int = -1
    """Kept after a preemption until no step in flight names the row."""
    penalty_slot: int = -1
    matcher: int = 0
    """Its number in the grammar process; 0: no grammar binds the output."""
    block_tables: list[list[int]] = field(default_factory=list)
    """One for each layer group, all of the same length; empty while the request has no blocks."""
    num_behind: int = 0
    """Leading entries of the tables of groups with a sliding window that hold no block any more."""
    chain_root: bytes | None = None
    """What the hash of the first block follows, once it is known."""
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered_blocks: int = 0
    num_scored: int = field(init=False)
    """Leading tokens of the prompt whose log-probabilities are not wanted any more: the first has none."""
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    def __post_init__(
        self,
        prompt_token_ids: Sequence[int] | np.ndarray,
        output_token_ids: Sequence[int] | np.ndarray,
        max_total_tokens: int,
    ) -> None:
        sampling, first = self.sampling, self.first_sample
        parts = [np.asarray(prompt_token_ids, np.int32), np.asarray(output_token_ids, np.int32)]
        self.tokens = np.concatenate(parts) if first is None else first.tokens
        self.num_prompt_tokens, self.num_prior_tokens = map(len, parts)
        wanted = max_total_tokens if sampling.max_tokens is None else self.num_prompt_tokens + sampling.max_tokens
        self.limit = min(wanted, max_total_tokens)
        self.stop_token_ids = frozenset(sampling.stop_token_ids)
        self.num_scored = 1 if sampling.prompt_logprobs is not None else self.num_prompt_tokens

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
