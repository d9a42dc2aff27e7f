"""The matchers of all requests, and the masks that steps wait for.

Masks are filled in the order of the steps. A mask can be filled once it is known what became of all masks of its
matcher before: a token was sampled, or the step skipped the request because the mask was late. Those of one step become
ready one by one. A late mask is kept for the step that asks again: computing it again would make it late again.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor, LLMatcher

from engine_core.grammar.compiler import Grammar, Lexer
from engine_core.grammar.vocabulary import error_of
from engine_core.ipc.grammar_messages import NO_TOKEN
from engine_core.ipc.step import LateMasks

_ALL = -1
"""A word that allows all its tokens."""
_NUM_MASKS_IN_PARALLEL = 8
"""So many masks at once are worth handing out to threads."""
_MIN_THREADS, _MAX_THREADS = 4, 8
_LEXERS_PER_THREAD = 4
"""Threads take what lies together, but one that has nothing left takes from others: two seldom meet at a lexer then."""


def num_mask_threads() -> int:
    """Threads that fill the masks of one engine core: half of the processors, most of which idle while a step waits for
    its masks. Two threads are no faster than one that wakes nobody."""
    count = min(_MAX_THREADS, (os.cpu_count() or 1) // 2)
    return count if count >= _MIN_THREADS else 1


def max_lexers(num_threads: int) -> int:
    """Compilations of one grammar that so many threads are kept busy by."""
    return _LEXERS_PER_THREAD * num_threads if num_threads > 1 else 1


@dataclass(slots=True)
class _Matcher:
    matcher: LLMatcher
    grammar: Grammar
    lexer: Lexer
    tokens: list[int]
    num_ordered: int = 0
    num_used: int = 0
    """Of the masks that were ordered, those of which it is known what became of them."""
    last_mask: np.ndarray | None = None
    """int32 [W], where what is allowed now was written last."""
    is_renewed: bool = False
    is_failed: bool = False


@dataclass(slots=True)
class _Order:
    """The masks of one step."""

    sequence: int
    open: list[tuple[int, int, int]]
    """Mask, matcher and how many masks of it were ordered before, of those that are not filled yet."""


class Matchers:
    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        masks_of: Callable[[int], LateMasks],
        publish: Callable[[int], None],
        tell_ready: Callable[[Sequence[int]], None],
        compile_again: Callable[[Grammar], LLMatcher | None],
        fail: Callable[[int, str], None],
        num_threads: int,
    ) -> None:
        """`masks_of(sequence)`: where a step's masks go; `publish(sequence)`: they are complete. `tell_ready` is told
        of matchers that a step has skipped and whose masks are there now. `compile_again` makes a matcher that shares
        nothing with others; `fail` is told of a matcher that cannot go on before the mask is published that it could
        not fill."""
        self._masks_of = masks_of
        self._publish = publish
        self._tell_ready = tell_ready
        self._compile_again = compile_again
        self._fail = fail
        self._executor = LLExecutor(num_threads) if num_threads > 1 else None
        self._matchers: dict[int, _Matcher] = {}
        self._orders: deque[_Order] = deque()
        self._skipped: set[int] = set()
        """Matchers of which it has to be told when their masks are there."""
        self.num_filled = 0
        self._failure_mask = np.zeros(-(-vocab_size // 32), np.int32)
        """One token that does not end the request: nobody may take for a complete answer what fails."""
        token = next(token for token in range(vocab_size) if token not in eos_token_ids)
        self._failure_mask[token // 32] = np.int32(1 << (token % 32)) if token % 32 < 31 else np.int32(-(2**31))

    def __len__(self) -> int:
        return len(self._matchers)

    def open(self, number: int, grammar: Grammar, tokens: Sequence[int]) -> str | None:
        """A matcher of its own that has taken `tokens`; returns what is wrong with them, if anything."""
        lexer = grammar.idlest()
        lexer.num_open += 1
        entry = _Matcher(lexer.matcher.deep_copy(), grammar, lexer, [])
        self._matchers[number] = entry
        for token in tokens:
            if not self._take(entry, token):
                self.close(number)
                return "the output so far does not follow it"
        return None

    def accept(self, numbers: Sequence[int], tokens: Sequence[int]) -> None:
        """What became of the oldest mask of each: a token or `NO_TOKEN`. Matchers may have been closed meanwhile."""
        for number, token in zip(numbers, tokens, strict=True):
            entry = self._matchers.get(number)
            if entry is None:
                continue
            entry.num_used += 1
            if token == NO_TOKEN:
                self._skipped.add(number)
                if entry.last_mask is not None:  # in a slot that other steps use again
                    entry.last_mask = entry.last_mask.copy()
            elif not entry.is_failed and not self._take(entry, token):
                self._give_up(number, entry)

    def close(self, number: int) -> None:
        entry = self._matchers.pop(number, None)
        if entry is not None:
            entry.lexer.num_open -= 1

    def order(self, sequence: int, numbers: Sequence[int]) -> None:
        order = _Order(sequence, [])
        for mask, number in enumerate(numbers):
            entry = self._matchers.get(number)
            order.open.append((mask, number, 0 if entry is None else entry.num_ordered))
            if entry is not None:
                entry.num_ordered += 1
        self._orders.append(order)

    def fill(self) -> None:
        """Fills what can be filled, and publishes the steps that are complete."""
        while self._orders:
            order = self._orders[0]
            self._fill(order)
            if order.open:
                break
            self._orders.popleft()
            self._publish(order.sequence)
        if self._skipped:
            self._fill_skipped()

    def _fill(self, order: _Order) -> None:
        late = self._masks_of(order.sequence)
        masks = late.masks
        ready: list[tuple[int, int, _Matcher]] = []
        still = []
        for mask, number, num_before in order.open:
            entry = self._matchers.get(number)
            if entry is not None and entry.num_used > num_before:
                continue  # the step has ended without it
            if entry is None:
                masks[mask] = _ALL
            elif entry.is_failed:
                masks[mask] = self._failure_mask
            elif entry.num_used < num_before:
                still.append((mask, number, num_before))
                continue
            elif entry.last_mask is not None:
                masks[mask] = entry.last_mask
            else:
                ready.append((mask, number, entry))
                continue
            late.sequences[mask] = order.sequence
        order.open = still
        is_parallel = self._executor is not None and len(ready) >= _NUM_MASKS_IN_PARALLEL
        for part in [ready] if is_parallel else [[one] for one in ready]:
            self._compute(masks, part)
            for mask, _, entry in part:
                entry.last_mask = None if entry.is_failed else masks[mask]
                late.sequences[mask] = order.sequence
        self.num_filled += len(ready)

    def _fill_skipped(self) -> None:
        """Whoever asks next for a mask that was late finds it ready."""
        skipped = {number: entry for number in self._skipped if (entry := self._matchers.get(number)) is not None}
        self._skipped.clear()
        if not skipped:
            return
        for number, entry in skipped.items():
            if entry.last_mask is None and not entry.is_failed:
                masks = np.empty((1, len(self._failure_mask)), np.int32)
                self._compute(masks, [(0, number, entry)])
                entry.last_mask = None if entry.is_failed else masks[0]
        self._tell_ready(list(skipped))

    def _compute(self, masks: np.ndarray, ready: list[tuple[int, int, _Matcher]]) -> None:
        num_bytes = masks.strides[0]
        if self._executor is not None and len(ready) >= _NUM_MASKS_IN_PARALLEL:
            ready.sort(key=lambda item: id(item[2].lexer))
            pairs = [(entry.matcher, mask) for mask, _, entry in ready]
            self._executor.unsafe_compute_mask_ptr(pairs, masks.ctypes.data, num_bytes, len(masks))
        else:
            for mask, _, entry in ready:
                entry.matcher.unsafe_compute_mask_ptr(masks[mask].ctypes.data, num_bytes)
        for mask, number, entry in ready:
            if not entry.matcher.is_error():
                continue
            if self._renew(entry):
                entry.matcher.unsafe_compute_mask_ptr(masks[mask].ctypes.data, num_bytes)
            if entry.matcher.is_error():
                self._give_up(number, entry)
                masks[mask] = self._failure_mask

    def _take(self, entry: _Matcher, token: int) -> bool:
        entry.tokens.append(token)
        entry.last_mask = None
        return entry.matcher.consume_token(token) or self._renew(entry)

    def _renew(self, entry: _Matcher) -> bool:
        """Matchers of one grammar share what its lexer has learned, which is bounded: where that is used up, whoever
        needs more gets a lexer to itself, once. False: that was not what is wrong, or not again."""
        if entry.is_renewed:
            return False
        entry.is_renewed = True
        fresh = self._compile_again(entry.grammar)
        if fresh is None or fresh.is_error() or not fresh.consume_tokens(entry.tokens):
            return False
        entry.matcher = fresh
        return True

    def _give_up(self, number: int, entry: _Matcher) -> None:
        entry.is_failed = True
        self._fail(number, error_of(entry.matcher) or "it cannot go on")
