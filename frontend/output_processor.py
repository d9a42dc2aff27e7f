"""One choice of an answer: token ids in, text out, and the verdict on its end.

The engine ends a request by token ids and lengths; stop strings are found here. What still arrives for a choice after
its stop string, a concurrent `length` included, is ignored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

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
    rank: int
    """1: none was more likely."""
    is_hidden: bool = False
    """Ended the output without being part of its text."""
    is_reasoning: bool = False


@dataclass(slots=True)
class OutputPiece:
    """What a delta adds to a choice."""

    parts: list[Event] = field(default_factory=list)
    """In the order of the output, none of them empty; joined when asked for, since a long answer has thousands."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's second token and those after it; whole in the first piece."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token id of the request, that ended it."""

    @property
    def text(self) -> str:
        return "".join([part.text for part in self.parts if isinstance(part, Content)])

    @property
    def reasoning(self) -> str:
        return "".join([part.text for part in self.parts if isinstance(part, Reasoning)])

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def has_output(self) -> bool:
        """Whether there is anything to see, beside an end."""
        return bool(self.parts)

    def add_text(self, text: str) -> None:
        if text:
            self.parts.append(Content(text))

    def add(self, later: "OutputPiece") -> None:
        """Takes up the piece that follows."""
        self.parts.extend(later.parts)
        self.token_ids.extend(later.token_ids)
        self.logprobs.extend(later.logprobs)
        self.prompt_logprobs.extend(later.prompt_logprobs)
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


def runs_of(piece: OutputPiece) -> Iterator[Event]:
    """Its parts, with neighbours of one kind of text joined."""
    for kind, parts in groupby(piece.parts, type):
        if kind is Content:
            yield Content("".join([part.text for part in parts]))  # type: ignore[union-attr]
        elif kind is Reasoning:
            yield Reasoning("".join([part.text for part in parts]))  # type: ignore[union-attr]
        else:
            yield from parts


class OutputProcessor:
    """Feed it the deltas of one request until it reports a finish reason."""

    def __init__(self, tokenizer: TextTokenizer, prompt_token_ids: Sequence[int], options: OutputOptions) -> None:
        self.num_prompt_tokens = len(prompt_token_ids)
        self._prompt_token_ids = prompt_token_ids
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
        if delta.prompt_logprobs is not None:
            columns, token_ids = delta.prompt_logprobs, self._prompt_token_ids
            piece.prompt_logprobs = [
                _logprobs_of(columns, i, token_ids[i + 1], 0) for i in range(len(columns.logprobs))
            ]
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
            if piece.logprobs:
                piece.logprobs[-1].is_reasoning = True
        self._add_events(piece, events)

    def _add_events(self, piece: OutputPiece, events: list[Event]) -> None:
        """Up to the one that ends the output. Stop strings are looked for in the content alone."""
        for event in events:
            if isinstance(event, Content):
                self._add_content(piece, event.text)
            elif isinstance(event, Reasoning):
                piece.parts.append(event)
            else:
                piece.add_text(self._stop.flush())  # no stop string spans a call
                piece.parts.append(event)
                self._has_calls = True
                if not self._options.parallel_tool_calls:
                    self._end(piece, messages.FINISH_STOP, None)
            if self.finished:
                return

    def _add_content(self, piece: OutputPiece, text: str) -> None:
        may_stop = self.num_output_tokens >= self._options.min_tokens
        released, stop_string = self._stop.feed(text, may_stop)
        piece.add_text(released)
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
            piece.add_text(self._stop.flush())
            named = stop_token_id is not None and stop_token_id in self._options.stop_token_ids
            self._end(piece, reason, stop_token_id if named else None)

    def _end(self, piece: OutputPiece, reason: str, stop_reason: str | int | None) -> None:
        self.finished = True
        if reason == messages.FINISH_STOP and self._has_calls and self._options.finishes_with_calls:
            reason = FINISH_TOOL_CALLS
        piece.finish_reason, piece.stop_reason = reason, stop_reason


def _logprobs_of(
    columns: LogprobColumns, i: int, token_id: int, text_offset: int, is_hidden: bool = False
) -> TokenLogprobs:
    start, end = i * columns.num_top, (i + 1) * columns.num_top
    top = zip(columns.top_token_ids[start:end], map(_finite, columns.top_logprobs[start:end]), strict=True)
    return TokenLogprobs(token_id, _finite(columns.logprobs[i]), list(top), text_offset, columns.ranks[i], is_hidden)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
