"""What a request's stream yields. Plain data: nothing here knows of sockets or text."""

from array import array
from dataclasses import dataclass, field


def int32_array(values: "array[int] | bytes | list[int] | tuple[int, ...]" = ()) -> "array[int]":
    """Token ids as the array that travels: 4-byte signed integers in the machine's own byte order."""
    column = array("i")
    if isinstance(values, bytes):
        column.frombytes(values)
    else:
        column.extend(values)
    return column


def float32_array() -> "array[float]":
    return array("f")


@dataclass(slots=True)
class LogprobColumns:
    """Log-probabilities of a delta's tokens; row i of the `top_*` columns starts at `i * num_top`."""

    num_top: int
    logprobs: "array[float]" = field(default_factory=float32_array)  # [num_tokens]
    ranks: "array[int]" = field(default_factory=int32_array)  # [num_tokens], 1 is the most likely
    top_token_ids: "array[int]" = field(default_factory=int32_array)  # [num_tokens * num_top]
    top_logprobs: "array[float]" = field(default_factory=float32_array)  # [num_tokens * num_top]

    @property
    def num_bytes(self) -> int:
        return 8 * (len(self.logprobs) + len(self.top_logprobs))

    def extend(self, other: "LogprobColumns") -> None:
        """Appends the rows of a later delta of the same request."""
        self.logprobs.extend(other.logprobs)
        self.ranks.extend(other.ranks)
        self.top_token_ids.extend(other.top_token_ids)
        self.top_logprobs.extend(other.top_logprobs)


@dataclass(frozen=True, slots=True)
class Finished:
    """How a request ended, with its figures (times in seconds)."""

    reason: str
    """`stop`, `length` or `abort`."""
    stop_token_id: int | None
    """The token that ended it, when one did."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    queue_time: float
    prefill_time: float
    decode_time: float


@dataclass(slots=True)
class TokenDelta:
    """The tokens that arrived since the last delta: those of one step, or of several when the reader was slower."""

    token_ids: "array[int]"
    logprobs: LogprobColumns | None = None
    finished: Finished | None = None
    """Set in the last delta of a request, and only there."""
    prompt_logprobs: LogprobColumns | None = None
    """Of the prompt's second token and those after it, where they were asked for; complete with the first token."""
    num_cached_tokens: int | None = None
    """Of the prompt; known from the first token on."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine core says of itself when a client connects."""

    version: int
    epoch: int
    """Changes when a core is replaced."""
    replica: int
    max_model_len: int
    vocab_size: int
    num_kv_tokens: int
