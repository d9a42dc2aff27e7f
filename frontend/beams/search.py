"""Beam search as transformers does it (`generate(num_beams=...)`, not sampled): which beams go on, which have ended.

Knows neither the engine nor text: it is told how likely each beam's next tokens are, and says when it is done. Among
equal scores the beam and then the token of the lower number comes first.

Sources: transformers' documentation of `num_beams`, `length_penalty` and `early_stopping`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine_core.ipc import messages
from engine_core.ipc.sampling_params import MAX_LOGPROBS

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class BeamParams:
    """Raises `ValueError` that names the field when a value is out of range."""

    width: int
    """Beams that are kept."""
    max_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    """What ends a beam."""
    length_penalty: float = 1.0
    """A finished beam's score is its log-probability divided by its length to this power."""
    early_stopping: EarlyStopping = False
    """True: done once `width` beams have ended. False: once the best running one, were it to end now, could not come
    among them. "never": once it could not with any length."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"The number of beams must be at least 1, not {self.width}.")
        if self.num_candidates > MAX_LOGPROBS:
            most = MAX_LOGPROBS * self.width // self.num_candidates
            raise ValueError(f"The number of beams must be at most {most}, not {self.width}.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if not math.isfinite(self.length_penalty) or abs(self.length_penalty) > 100:
            raise ValueError(f"length_penalty must be from -100 to 100, not {self.length_penalty}.")

    @property
    def num_candidates(self) -> int:
        """Continuations that are looked at in each round: if every one of the best ends, `width` others are left."""
        return max(2, 1 + len(self.eos_token_ids)) * self.width


@dataclass(frozen=True, slots=True)
class NextTokens:
    """What may follow a beam: the most likely tokens with their log-probabilities, most likely first."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Beam:
    """A beginning of an answer."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    """Of all its tokens together."""
    choices: tuple[tuple[int, NextTokens], ...] = ()
    """For each token its rank and what it was chosen among."""


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    beam: Beam
    score: float
    reason: str
    """`stop` or `length`."""


class BeamSearch:
    """One prompt's search: call `advance` with what may follow each of `running` until it is `done`."""

    def __init__(self, params: BeamParams) -> None:
        self.running = [Beam()]
        self.finished: list[FinishedBeam] = []
        """Best first."""
        self.done = False
        self._params = params

    def advance(self, following: Sequence[NextTokens]) -> None:
        """`following[i]`: at least the `num_candidates` most likely tokens behind `running[i]`."""
        params, count = self._params, len(self.running[0].token_ids) + 1
        candidates = self._best_candidates(following)
        ending = [(beam, self._reason(beam, count)) for beam in candidates]
        # Only what is among the best as it ends counts as an answer; the rest is there so that enough go on.
        ended = [
            FinishedBeam(beam, beam.logprob / count**params.length_penalty, reason)
            for beam, reason in ending[: params.width]
            if reason is not None
        ]
        self.finished = sorted([*self.finished, *ended], key=lambda one: -one.score)[: params.width]
        self.running = [beam for beam, reason in ending if reason is None][: params.width]
        self.done = not self.running or (self._is_full and not self._may_improve(count))

    def _best_candidates(self, following: Sequence[NextTokens]) -> list[Beam]:
        scored = [
            (beam.logprob + logprob, index, rank, token_id)
            for index, (beam, tokens) in enumerate(zip(self.running, following, strict=True))
            for rank, (token_id, logprob) in enumerate(zip(tokens.token_ids, tokens.logprobs, strict=True), start=1)
        ]
        scored.sort(key=lambda one: (-one[0], one[1], one[3]))
        beams = []
        for logprob, index, rank, token_id in scored[: self._params.num_candidates]:
            before = self.running[index]
            choice = rank, following[index]
            beams.append(Beam((*before.token_ids, token_id), logprob, (*before.choices, choice)))
        return beams

    def _reason(self, beam: Beam, count: int) -> str | None:
        """Why a beam of `count` tokens has ended, if it has."""
        if beam.token_ids[-1] in self._params.eos_token_ids:
            return messages.FINISH_STOP
        return messages.FINISH_LENGTH if count == self._params.max_tokens else None

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._params.width

    def _may_improve(self, count: int) -> bool:
        """Whether the best running beam could still come among the finished ones."""
        params = self._params
        if params.early_stopping is True:
            return False
        is_longer_better = params.early_stopping == "never" and params.length_penalty > 0
        length = params.max_tokens if is_longer_better else count
        return self.running[0].logprob / length**params.length_penalty > self.finished[-1].score
