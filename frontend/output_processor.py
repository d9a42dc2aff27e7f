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
from frontend.parsers.chat_parser import ParserMaker
from frontend.parsers.events import Content, Event, Reasoning, ToolCall
from frontend.stop_strings import StopStrings
from frontend.tokenizer import TextTokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""
FINISH_TOOL_CALLS = "tool_calls"
"""How an output ends that would end with `stop` and has calls."""


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
    parsers: ParserMaker | None = None
    """None: text is content as it is."""
    parallel_tool_calls: bool = True
    """False: the first call ends the output."""
    finishes_with_calls: bool = True
    """False: the client has named the function, and an output with its call ends like any other."""


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
    reasoning_texts: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token id of the request, that ended it."""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasoning_texts)

    @property
    def has_output(self) -> bool:
        """Whether there is anything to see, beside an end."""
        return bool(self.reasoning_texts or self.tool_calls or any(self.texts))

    def add(self, later: "OutputPiece") -> None:
        """Takes up the piece that follows."""
        self.texts.extend(later.texts)
        self.reasoning_texts.extend(later.reasoning_texts)
        self.tool_calls.extend(later.tool_calls)
        self.token_ids.extend(later.token_ids)
        self.logprobs.extend(later.logprobs)
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


class OutputProcessor:
    """Feed it the deltas of one request until it reports a finish reason."""

    def __init__(self, tokenizer: TextTokenizer, prompt_token_ids: Sequence[int], options: OutputOptions) -> None:
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_output_tokens = 0
        """Tokens up to the end of the output, the one that ended it included."""
        self.num_reasoning_tokens: int | None = None if options.parsers is None else 0
        """Those up to the end marker of the reasoning, the markers included."""
        self.num_cached_tokens: int | None = None
        self.finished = False
        self._options = options
        parsers = options.parsers
        self._parser = None if parsers is None else parsers.make()
        self._detokenizer = Detokenizer(
            tokenizer,
            prompt_token_ids,
            options.skip_special_tokens,
            frozenset() if parsers is None else parsers.markers,
        )
        self._stop = StopStrings(options.stop_strings, options.include_stop)
        self._num_chars = 0
        self._has_calls = False

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
            self._add_text(piece, text)
            if self.finished:
                return piece
        if finished is not None:
            self.num_cached_tokens = finished.num_cached_tokens
            self._finish_naturally(piece, finished.reason, finished.stop_token_id)
        return piece

    def _add_text(self, piece: OutputPiece, text: str) -> None:
        if self._parser is None:
            self._add_content(piece, text)
            return
        was_in_reasoning = self._parser.in_reasoning
        events = self._parser.feed(text)
        if was_in_reasoning or self._parser.in_reasoning:
            self.num_reasoning_tokens = (self.num_reasoning_tokens or 0) + 1
        self._add_events(piece, events)

    def _add_events(self, piece: OutputPiece, events: list[Event]) -> None:
        """Up to the one that ends the output. Stop strings are looked for in the content alone."""
        for event in events:
            if isinstance(event, Content):
                self._add_content(piece, event.text)
            elif isinstance(event, Reasoning):
                piece.reasoning_texts.append(event.text)
            else:
                piece.tool_calls.append(event)
                self._has_calls = True
                if not self._options.parallel_tool_calls:
                    piece.texts.append(self._stop.flush())
                    self._end(piece, messages.FINISH_STOP, None)
            if self.finished:
                return

    def _add_content(self, piece: OutputPiece, text: str) -> None:
        may_stop = self.num_output_tokens >= self._options.min_tokens
        released, stop_string = self._stop.feed(text, may_stop)
        piece.texts.append(released)
        if stop_string is not None:
            self._end(piece, messages.FINISH_STOP, stop_string)

    def _finish_naturally(self, piece: OutputPiece, reason: str, stop_token_id: int | None) -> None:
        """The engine's verdict stands, unless the text that was held back completes a stop string."""
        rest = self._detokenizer.flush()
        if self._parser is None:
            self._add_content(piece, rest)
        else:
            self._add_events(piece, self._parser.feed(rest) + self._parser.finish())
        if not self.finished:
            piece.texts.append(self._stop.flush())
            named = stop_token_id is not None and stop_token_id in self._options.stop_token_ids
            self._end(piece, reason, stop_token_id if named else None)

    def _end(self, piece: OutputPiece, reason: str, stop_reason: str | int | None) -> None:
        self.finished = True
        if reason == messages.FINISH_STOP and self._has_calls and self._options.finishes_with_calls:
            reason = FINISH_TOOL_CALLS
        piece.finish_reason, piece.stop_reason = reason, stop_reason


def _logprobs_of(columns: LogprobColumns, i: int, token_id: int, text_offset: int, is_hidden: bool) -> TokenLogprobs:
    start, end = i * columns.num_top, (i + 1) * columns.num_top
    top = zip(columns.top_token_ids[start:end], map(_finite, columns.top_logprobs[start:end]), strict=True)
    return TokenLogprobs(token_id, _finite(columns.logprobs[i]), list(top), text_offset, is_hidden)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
