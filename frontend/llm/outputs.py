"""What `LLM` returns."""

from dataclasses import dataclass, field

from frontend.client import Finished
from frontend.output_processor import TokenLogprobs
from frontend.protocol.common import PromptLogprob


@dataclass(slots=True)
class CompletionOutput:
    """One answer."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    """`stop` or `length`."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it."""


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    """By token id, one entry for each token of the prompt; None for its first."""
    metrics: Finished | None = None
    """The engine's figures of the answer that ended last, unless a stop string ended it."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that this answer found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One answer that was searched for."""

    text: str
    token_ids: list[int]
    cum_logprob: float
    score: float
    """`cum_logprob` under the length penalty, which answers are ordered by."""
    finish_reason: str


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """A prompt with its answers, best first."""

    prompt: str | None
    prompt_token_ids: list[int]
    sequences: list[BeamSearchSequence]
