"""What the scheduler hands to the engine core: a step that was planned, and what came of one that was collected."""

from dataclasses import dataclass

import numpy as np

from engine_core.request import Request


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Neighbouring tokens of a prompt whose log-probabilities a step finds."""

    request: Request
    first: int
    """The number of the first one in the prompt."""
    count: int
    offset: int
    """Where they stand among the step's scores."""


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """What the engine core remembers of a dispatched step until its result comes. Arrays are [num_seqs]."""

    step_id: int
    rows: np.ndarray
    generation: np.ndarray
    num_expected: np.ndarray
    """The most tokens that each row can yield; 0: it does not sample."""
    counts: np.ndarray
    """Tokens of each row that the step computes."""
    num_tokens: int
    num_prompt_tokens: int
    """Those of the tokens that the prompts of their requests have."""
    scored: list[ScoredTokens]
    mask_rows: np.ndarray
    """int32 [num_masks]: the rows that sample under a grammar, in the order of the plan's masks."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that ended, and why."""

    request: Request
    reason: str
    stop_token_id: int | None
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """The tokens of one collected step that count. Arrays are [num_outputs] where nothing else is said."""

    indices: np.ndarray
    """Where in the step's (and the result's) order each output stands."""
    rows: np.ndarray
    counts: np.ndarray
    """New tokens of each row, at least 1."""
    token_ids: np.ndarray
    """int32 [sum of counts], one row after the other."""
    intervals: np.ndarray
    """Seconds since the row's token before; for a first token, since the request's arrival."""
    is_first: np.ndarray
    """Whether the request had no token before."""
    skipped_rows: np.ndarray
    """int32 [num_skipped]: rows without a token, because their mask was late."""
    scored: list[ScoredTokens]
    """Of those that the step found, what was not known before."""
    finished: list[Finished]
