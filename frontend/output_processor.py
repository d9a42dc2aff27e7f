"""One choice of an answer: token ids in, text out, and the verdict on its end.

The engine ends a request by token ids and lengths; stop strings are found here. What still arrives for a choice after
its stop string, a concurrent `length` included, is ignored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_core.ipc import messages
from frontend.client import LogprobColumns, TokenDelta
from frontend.detokenizer import Detokenizer
from frontend.stop_strings import StopStrings
from frontend.tokenizer import TextTokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What a request wants to see of its outputs."""

    stop_strings: list[str] = field(default_factory=list)
    include_stop: bool = False
    """Whether the stop string or the text of the stop token is part of the text."""
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """Those that the request named, as opposed to the model's own end."""
    skip_special_tokens: bool = True


@dataclass(slots=True)
class TokenLogprobs:
    """A token, its log-probability and the alternatives, most likely first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    text_offset: int
    """Where its text begins in the output."""
    is_hidden: bool = False
    """Ended the output without being part of its text."""


@dataclass(slots=True)
class OutputPiece:
    """What a delta adds to a choice."""

    texts: list[str] = field(default_factory=list)
    """The text in pieces, joined when it is asked for: a long answer is collected from thousands of them."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token id of the request, that ended it."""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, later: "OutputPiece") -> None:
        """Takes up the piece that follows."""
        self.texts.extend(later.texts)
        self.token_ids.extend(later.token_ids)
        self.logprobs.extend(later.logprobs)
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


class OutputProcessor:
    """Feed it the deltas of one request until it reports a finish reason."""

    def __init__(self, tokenizer: TextTokenizer, prompt_token_ids: Sequence[int], options: OutputOptions) -> None:
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_output_tokens = 0
        """Tokens up to the end of the output, the one that ended it included."""
        self.num_cached_tokens: int | None = None
        self.finished = False
        self._options = options
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, options.skip_special_tokens)
        self._stop = StopStrings(options.stop_strings, options.include_stop)
        self._num_chars = 0

    def push(self, delta: TokenDelta) -> OutputPiece:
        """Token by token, so that the result is the same however the tokens were grouped."""
        piece = OutputPiece()
        if self.finished:
            return piece
        finished = delta.finished
        last = len(delta.token_ids) - 1
        for i, token_id in enumerate(delta.token_ids):
            ends_it = (
                finished is not None
                and i == last
                and finished.reason == messages.FINISH_STOP
                and finished.stop_token_id == token_id
            )
            is_hidden = ends_it and not self._options.include_stop
            text = "" if is_hidden else self._detokenizer.step(token_id)
            self.num_output_tokens += 1
            piece.token_ids.append(token_id)
            if delta.logprobs is not None:
                piece.logprobs.append(_logprobs_of(delta.logprobs, i, token_id, self._num_chars, is_hidden))
            self._num_chars += len(text)
            released, stop_string = self._find_stop(text)
            piece.texts.append(released)
            if stop_string is not None:
                self._end(piece, messages.FINISH_STOP, stop_string)
                return piece
        if finished is not None:
            self.num_cached_tokens = finished.num_cached_tokens
            self._finish_naturally(piece, finished.reason, finished.stop_token_id)
        return piece

    def _find_stop(self, text: str) -> tuple[str, str | None]:
        return self._stop.feed(text, may_stop=self.num_output_tokens >= self._options.min_tokens)

    def _finish_naturally(self, piece: OutputPiece, reason: str, stop_token_id: int | None) -> None:
        """The engine's verdict stands, unless the text that was held back completes a stop string."""
        rest, stop_string = self._find_stop(self._detokenizer.flush())
        piece.texts.append(rest)
        if stop_string is not None:
            self._end(piece, messages.FINISH_STOP, stop_string)
        else:
            piece.texts.append(self._stop.flush())
            named = stop_token_id is not None and stop_token_id in self._options.stop_token_ids
            self._end(piece, reason, stop_token_id if named else None)

    def _end(self, piece: OutputPiece, reason: str, stop_reason: str | int | None) -> None:
        self.finished = True
        piece.finish_reason, piece.stop_reason = reason, stop_reason


def _logprobs_of(columns: LogprobColumns, i: int, token_id: int, text_offset: int, is_hidden: bool) -> TokenLogprobs:
    start, end = i * columns.num_top, (i + 1) * columns.num_top
    top = zip(columns.top_token_ids[start:end], map(_finite, columns.top_logprobs[start:end]), strict=True)
    return TokenLogprobs(token_id, _finite(columns.logprobs[i]), list(top), text_offset, is_hidden)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
