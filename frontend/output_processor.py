"""One choice of an answer: token ids in, text out, and the verdict on its end.

The engine ends a request by token ids and lengths; stop strings are found here. What still arrives for a choice after
its stop string, a concurrent `length` included, is ignored.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from engine_core.ipc import messages
from frontend.client import LogprobColumns, TokenDelta
from frontend.detokenizer import Detokenizer
from frontend.parsers.chat_parser import ParserMaker
from frontend.parsers.events import Content, Event, Reasoning, ToolCall
from frontend.stop_strings import StopStrings
from frontend.token_spans import TokenSpans
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
    logprobs_of_content: bool = False
    """Whether tokens of which the content has no part (reasoning, calls, markers, what a stop string cut off) have no
    log-probabilities in the answer."""


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
        self.num_cached_tokens: int | None = None
        """Of the prompt; known from the first token on."""
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
        self._stop_tokens: dict[int, str] = {}
        """Special tokens that are no part of the text, though stop strings have them: the search must see them."""
        if options.stop_strings and self._detokenizer.left_out:
            named = tokenizer.special_tokens_within(tuple(options.stop_strings))
            self._stop_tokens = {one: text for one, text in named.items() if one in self._detokenizer.left_out}
        self._spans: TokenSpans[TokenLogprobs | None] | None = None
        """None: log-probabilities are given of every token, and there is no reasoning to count."""
        if parsers is not None or options.logprobs_of_content:
            self._spans = TokenSpans()
        self._num_chars = 0
        """Of the text, markup and `_stop_tokens` included."""
        self._stop_token_places: deque[tuple[int, int]] = deque()
        """Where the text has `_stop_tokens` that have not been taken out of it yet."""
        self._num_stop_token_chars = 0
        self._has_calls = False

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens up to the end marker of the reasoning, its markers included. None: nobody looks for reasoning."""
        return None if self._parser is None or self._spans is None else self._spans.num_reasoning

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
        if delta.num_cached_tokens is not None:
            self.num_cached_tokens = delta.num_cached_tokens
        finished = delta.finished
        last = len(delta.token_ids) - 1
        for i, token_id in enumerate(delta.token_ids):
            ends_it = (
                finished is not None
                and i == last
                and finished.reason == messages.FINISH_STOP
                and finished.stop_token_id == token_id
            )
            self.num_output_tokens += 1
            piece.token_ids.append(token_id)
            logprobs = None
            if delta.logprobs is not None:
                text_offset = self._num_chars - self._num_stop_token_chars
                logprobs = _logprobs_of(delta.logprobs, i, token_id, text_offset)
            self._add_token(piece, token_id, logprobs, is_hidden=ends_it and not self._options.include_stop)
            if self.finished:
                return piece
        if finished is not None:
            self._finish_naturally(piece, finished.reason, finished.stop_token_id)
        return piece

    def _add_token(self, piece: OutputPiece, token_id: int, logprobs: TokenLogprobs | None, *, is_hidden: bool) -> None:
        """`is_hidden`: it ends the output and is no part of the text."""
        text = ""
        if not is_hidden:
            text = self._detokenizer.step(token_id) or self._text_of_stop_token(token_id)
        if self._spans is not None:
            is_left_out = is_hidden or token_id in self._detokenizer.left_out
            self._spans.push(logprobs, len(text), is_left_out=is_left_out and not text)
        elif logprobs is not None:
            piece.logprobs.append(logprobs)
        self._add_events(piece, self._events_of(text))

    def _text_of_stop_token(self, token_id: int) -> str:
        """Of one of `_stop_tokens`, for the search; it is taken out of the content later."""
        text = self._stop_tokens.get(token_id, "")
        if not text or (self._parser is not None and self._parser.in_reasoning):
            return ""
        self._stop_token_places.append((self._num_chars, self._num_chars + len(text)))
        self._num_stop_token_chars += len(text)
        return text

    def _events_of(self, text: str) -> list[Event]:
        """What is certain with this text."""
        start = self._num_chars
        self._num_chars += len(text)
        if self._parser is None:
            return [Content(text, start)] if text else []
        events = self._parser.feed(text)
        assert self._spans is not None
        self._spans.reasoning(*self._parser.reasoning_run)
        return events

    def _add_events(self, piece: OutputPiece, events: list[Event]) -> None:
        """Up to the one that ends the output. Stop strings are looked for in the content alone."""
        for event in events:
            if isinstance(event, Content):
                self._add_content(piece, event)
            elif isinstance(event, Reasoning):
                piece.parts.append(event)
            else:
                self._release(piece, self._stop.flush())  # no stop string spans a call
                piece.parts.append(event)
                self._has_calls = True
                if not self._options.parallel_tool_calls:
                    self._end(piece, messages.FINISH_STOP, None)
            if self.finished:
                return

    def _add_content(self, piece: OutputPiece, content: Content) -> None:
        may_stop = self.num_output_tokens >= self._options.min_tokens
        released, stop_string = self._stop.feed(content, may_stop)
        self._release(piece, released)
        if stop_string is not None:
            self._end(piece, messages.FINISH_STOP, stop_string)

    def _release(self, piece: OutputPiece, contents: list[Content]) -> None:
        """What is certain to be content, without `_stop_tokens`."""
        for content in contents:
            parts = self._visible_parts(content) if self._stop_token_places else (content,)
            piece.parts.extend(parts)
            if self._spans is not None:
                for part in parts:
                    found = self._spans.content(part.start, part.end)
                    piece.logprobs.extend([logprobs for logprobs in found if logprobs is not None])

    def _visible_parts(self, content: Content) -> list[Content]:
        visible, places, start = [], self._stop_token_places, content.start
        while places and places[0][0] < content.end:
            hidden_start, hidden_end = places[0]
            if start < hidden_start:
                visible.append(content.part(start - content.start, hidden_start - content.start))
            start = max(start, hidden_end)
            if hidden_end > content.end:
                break
            places.popleft()
        if start < content.end:
            visible.append(content.part(start - content.start, len(content.text)))
        return visible

    def _finish_naturally(self, piece: OutputPiece, reason: str, stop_token_id: int | None) -> None:
        """The engine's verdict stands, unless the text that was held back completes a stop string."""
        rest = self._detokenizer.flush()
        if self._spans is not None:
            self._spans.grow(len(rest))
        events = self._events_of(rest)
        if self._parser is not None:
            assert self._spans is not None
            if self._parser.in_reasoning:
                self._spans.reasoning(self._parser.reasoning_run[0], None)
            events += self._parser.finish()
        self._add_events(piece, events)
        if not self.finished:
            self._release(piece, self._stop.flush())
            named = stop_token_id is not None and stop_token_id in self._options.stop_token_ids
            self._end(piece, reason, stop_token_id if named else None)

    def _end(self, piece: OutputPiece, reason: str, stop_reason: str | int | None) -> None:
        self.finished = True
        if reason == messages.FINISH_STOP and self._has_calls and self._options.finishes_with_calls:
            reason = FINISH_TOOL_CALLS
        piece.finish_reason, piece.stop_reason = reason, stop_reason


def _logprobs_of(columns: LogprobColumns, i: int, token_id: int, text_offset: int) -> TokenLogprobs:
    start, end = i * columns.num_top, (i + 1) * columns.num_top
    top = zip(columns.top_token_ids[start:end], map(_finite, columns.top_logprobs[start:end]), strict=True)
    return TokenLogprobs(token_id, _finite(columns.logprobs[i]), list(top), text_offset, columns.ranks[i])


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
