"""The requests of an engine core whose output a grammar binds: held until it is compiled, then in step with it.

Speaks to the grammar process and never waits for it. All that a step costs here are two short messages: the tokens that
were collected, and which masks the dispatched step needs.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from engine_core.admission import Refused
from engine_core.ipc.grammar_messages import (
    NO_TOKEN,
    AcceptTokens,
    CloseMatcher,
    FillMasks,
    FromGrammar,
    GrammarError,
    MasksReady,
    MatcherFailed,
    MatcherOpened,
    OpenMatcher,
    ToGrammar,
)
from engine_core.ipc.messages import ERROR_GRAMMAR, ERROR_OVERLOADED, ERROR_RESOURCES
from engine_core.request import Request
from engine_core.row_table import RowTable
from engine_core.step_records import ScheduledStep, StepOutputs


class GrammarLink(Protocol):
    """The grammar process."""

    @property
    def refusal(self) -> str | None: ...
    @property
    def has_unsent(self) -> bool: ...
    def fileno(self) -> int: ...
    def send(self, message: ToGrammar) -> None: ...
    def receive(self) -> list[FromGrammar]: ...


class GrammarRequests:
    """A matcher's number is its request's `matcher`; 0 is none."""

    def __init__(self, link: GrammarLink | None, table: RowTable) -> None:
        self.link = link if link is not None and link.refusal is None else None
        self.refusal = "This engine was started without grammars." if link is None else link.refusal
        """Why no grammar can be had; None: they can."""
        self._table = table
        self._requests: dict[int, Request] = {}
        self._held: set[int] = set()
        self._late: dict[int, float] = {}
        """Since when a matcher's mask is late, in monotonic seconds."""
        self._num_opened = 0

    @property
    def num_held(self) -> int:
        """Requests whose grammar is being compiled; the scheduler does not know them."""
        return len(self._held)

    def check_room(self, share_key: str | None, max_held: int, num_new: int) -> None:
        """Raises `Refused` where so many further requests with a grammar cannot be held; of one share no more than are
        free."""
        if self.refusal is not None:
            raise Refused(ERROR_GRAMMAR, self.refusal)
        of_share = 0 if share_key is None else sum(self._requests[held].share_key == share_key for held in self._held)
        num_before = num_new - 1  # as the last of them finds it
        if max_held - self.num_held - num_before <= (0 if share_key is None else of_share + num_before):
            raise Refused(ERROR_OVERLOADED, "Too many grammars are being compiled; try again.", retry_after=1.0)

    def hold(self, request: Request) -> None:
        """Asks for a request's matcher; `receive` says when it may run."""
        assert self.link is not None
        assert request.sampling.grammar is not None
        self._num_opened += 1
        request.matcher = self._num_opened
        self._requests[request.matcher] = request
        self._held.add(request.matcher)
        output = request.tokens[request.num_prompt_tokens :]
        self.link.send(OpenMatcher(matcher=request.matcher, grammar=request.sampling.grammar, tokens=output.tobytes()))

    def is_held(self, request: Request) -> bool:
        return request.matcher in self._held

    def close(self, request: Request) -> None:
        """The request has ended. May be called for any request."""
        if self._requests.pop(request.matcher, None) is not None:
            assert self.link is not None
            self._held.discard(request.matcher)
            self._late.pop(request.matcher, None)
            self.link.send(CloseMatcher(matcher=request.matcher))

    def receive(self) -> Iterator[tuple[Request, Refused | None]]:
        """Requests that may run now, and those that cannot run or go on, with the reason; these have to be closed."""
        assert self.link is not None
        for message in self.link.receive():
            if isinstance(message, MasksReady):
                self._masks_are_there(np.frombuffer(message.matchers, np.int64).tolist())
                continue
            assert isinstance(message, MatcherOpened | MatcherFailed), message
            request = self._requests.get(message.matcher)
            if request is None:
                continue  # it was aborted meanwhile
            if isinstance(message, MatcherFailed):
                yield request, _refused(GrammarError(message.error))
            elif message.error is not None:
                yield request, _refused(message.error)
            else:
                self._held.remove(message.matcher)
                yield request, None

    def _masks_are_there(self, matchers: list[int]) -> None:
        for matcher in matchers:
            self._late.pop(matcher, None)
            request = self._requests.get(matcher)
            if request is not None and request.row >= 0:
                self._table.awaits_mask[request.row] = False

    def overdue(self, since: float) -> list[Request]:
        """Requests whose masks are late since `since` or longer."""
        return [self._requests[matcher] for matcher, begin in self._late.items() if begin <= since]

    def accept(self, outputs: StepOutputs, now: float) -> None:
        """The tokens of a collected step, for the requests that go on, and which rows it skipped."""
        matchers = np.repeat(self._table.matcher[outputs.rows], outputs.counts)
        counts = matchers > 0
        if outputs.finished:
            counts &= ~np.isin(matchers, [finished.request.matcher for finished in outputs.finished])
        matchers, tokens = matchers[counts], outputs.token_ids[counts]
        if self._late:
            for matcher in matchers.tolist():
                self._late.pop(matcher, None)
        if len(outputs.skipped_rows):
            skipped = self._table.matcher[outputs.skipped_rows]
            for matcher in skipped.tolist():
                self._late.setdefault(matcher, now)
            matchers = np.concatenate([matchers, skipped])
            tokens = np.concatenate([tokens, np.full(len(skipped), NO_TOKEN, np.int32)])
        if len(matchers):
            assert self.link is not None
            self.link.send(AcceptTokens(matchers=matchers.tobytes(), tokens=tokens.astype("<i4").tobytes()))

    def order_masks(self, step: ScheduledStep) -> None:
        """The masks that a dispatched step waits for; a step's number is that of its plan in the ring."""
        if len(step.mask_rows):
            assert self.link is not None
            matchers = self._table.matcher[step.mask_rows]
            self.link.send(FillMasks(sequence=step.step_id, matchers=matchers.tobytes()))


def _refused(error: GrammarError) -> Refused:
    if error.is_wrong:
        return Refused(ERROR_GRAMMAR, f"The grammar cannot be honoured: {error.reason}.")
    return Refused(ERROR_RESOURCES, f"No process could be started to try the grammar: {error.reason}; try again.")
