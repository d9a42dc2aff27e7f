"""The grammar process: compiles, steps matchers and fills masks for its engine core, until that is gone."""

import os
import select
from collections.abc import Sequence

import msgspec
import numpy as np

from engine_core.grammar.compiler import Grammar, GrammarCompiler
from engine_core.grammar.matchers import Matchers, num_mask_threads
from engine_core.grammar.vocabulary import Vocabulary
from engine_core.ipc.frames import FrameSocket
from engine_core.ipc.grammar_messages import (
    MAX_ERROR_CHARS,
    AcceptTokens,
    CloseMatcher,
    FillMasks,
    FromGrammar,
    GrammarError,
    MasksReady,
    MatcherFailed,
    MatcherOpened,
    OpenMatcher,
    decode_to_grammar,
    encode_grammar_message,
)
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import LateMasks, StepShape, late_layout

_IDLE_POLL_MS = 1000


class GrammarServer:
    def __init__(
        self,
        vocabulary: Vocabulary,
        compiler: GrammarCompiler,
        frames: FrameSocket,
        ring: Ring,
        shape: StepShape,
        bells: Sequence[int],
        heartbeats: Heartbeats,
        heartbeat_index: int,
    ) -> None:
        """`bells`: an eventfd of each worker that waits for late parts of `ring`."""
        self._frames = frames
        self._compiler = compiler
        self._ring = ring
        self._bells = bells
        self._heartbeats = heartbeats
        self._heartbeat_index = heartbeat_index
        layout = late_layout(shape)
        self._late = [LateMasks.over(layout, slot) for slot in ring.late_slots]
        self._opening: set[int] = set()
        self._num_opened = 0
        self._matchers = Matchers(
            vocabulary.size,
            vocabulary.eos_token_ids,
            lambda sequence: self._late[ring.slot_of(sequence)],
            self._publish,
            lambda numbers: self._send(MasksReady(matchers=np.array(numbers, "<i8").tobytes())),
            compiler.compile_again,
            lambda number, error: self._send(MatcherFailed(matcher=number, error=error[:MAX_ERROR_CHARS])),
            num_mask_threads(),
        )

    def run(self) -> None:
        """Raises `FramesClosed` when the engine core is gone."""
        poll, trials = select.poll(), self._compiler.trials
        poll.register(self._compiler.fileno(), select.POLLIN)
        while True:
            for frames in (self._frames, trials):
                poll.register(frames.fileno(), select.POLLIN | (select.POLLOUT if frames.has_unsent else 0))
            readable = {fd for fd, _ in poll.poll(_IDLE_POLL_MS)}
            self._heartbeats.beat(self._heartbeat_index, self._num_opened + self._matchers.num_filled, 0)
            if self._frames.fileno() in readable:
                self._frames.flush()
                for frame in self._frames.receive():
                    self._take(frame)
                self._matchers.fill()
            if readable - {self._frames.fileno()}:
                self._compiler.collect()

    def _take(self, frame: bytes) -> None:
        match decode_to_grammar(frame):
            case AcceptTokens(matchers=matchers, tokens=tokens):
                self._matchers.accept(_numbers(matchers, "<i8"), _numbers(tokens, "<i4"))
            case FillMasks(sequence=sequence, matchers=matchers):
                self._matchers.order(sequence, _numbers(matchers, "<i8"))
            case OpenMatcher(matcher=number, grammar=text, tokens=tokens):
                self._opening.add(number)
                self._compiler.request(
                    text, lambda grammar, error: self._opened(number, grammar, error, _numbers(tokens, "<i4"))
                )
            case CloseMatcher(matcher=number):
                self._opening.discard(number)
                self._matchers.close(number)

    def _opened(self, number: int, grammar: Grammar | None, error: GrammarError | None, tokens: list[int]) -> None:
        if number not in self._opening:
            return  # its request was aborted meanwhile
        self._opening.remove(number)
        if grammar is not None:
            reason = self._matchers.open(number, grammar, tokens)
            error = None if reason is None else GrammarError(reason)
        self._num_opened += 1
        if error is not None:
            error = msgspec.structs.replace(error, reason=error.reason[:MAX_ERROR_CHARS])
        self._send(MatcherOpened(matcher=number, error=error))

    def _publish(self, sequence: int) -> None:
        self._ring.publish_late(sequence)
        for bell in self._bells:
            os.eventfd_write(bell, 1)

    def _send(self, message: FromGrammar) -> None:
        self._frames.send(encode_grammar_message(message))


def _numbers(column: bytes, dtype: str) -> list[int]:
    numbers: list[int] = np.frombuffer(column, dtype).tolist()
    return numbers
