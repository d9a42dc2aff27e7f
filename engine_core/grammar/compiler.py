"""Grammars by their text: compiled once, kept while there is room for them.

A grammar is tried in a child first (`trials`). What passes is compiled here, in a thread that does not hold the
interpreter's lock, so that masks are filled meanwhile.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher

from engine_core.grammar.trials import Trial, TrialProcess
from engine_core.grammar.vocabulary import Vocabulary, error_of

CACHE_BYTES = 128 * 2**20
_ENTRY_BYTES = 64 * 2**10
"""What any grammar takes at least: little ones come out of memory that the trial had already."""

_QUICK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled one."""

    text: str
    matcher: LLMatcher
    """At the beginning of its output; copy it."""
    is_quick: bool
    """Whether it can be compiled again while steps wait."""


Receiver = Callable[[Grammar | None, str | None], None]
"""Called with a grammar or with an error."""


class GrammarCache:
    """The least recently used grammars go first."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str) -> Grammar | None:
        entry = self._entries.get(text)
        if entry is None:
            return None
        self._entries.move_to_end(text)
        return entry[0]

    def put(self, grammar: Grammar, num_bytes: int) -> None:
        """`num_bytes`: what it takes beside its text."""
        self.drop(grammar.text)
        num_bytes += len(grammar.text) + _ENTRY_BYTES
        self._entries[grammar.text] = (grammar, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, text: str) -> None:
        entry = self._entries.pop(text, None)
        if entry is not None:
            self.num_bytes -= entry[1]


@dataclass(slots=True)
class _Job:
    text: str
    receivers: list[Receiver]
    num_bytes: int = 0
    compiled: "Future[Grammar] | None" = None


class GrammarCompiler:
    """Poll `trials` and `fileno()`, then call `collect`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.trials = TrialProcess(vocabulary)
        self.cache = GrammarCache()
        self._vocabulary = vocabulary
        self._jobs: dict[int, _Job] = {}
        self._by_text: dict[str, _Job] = {}
        self._num_jobs = 0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    def fileno(self) -> int:
        """Readable when a grammar has been compiled."""
        return self._bell

    def close(self) -> None:
        """Ends the process that tries grammars."""
        self._thread.shutdown()
        self.trials.close()
        os.close(self._bell)

    def request(self, text: str, receiver: Receiver) -> None:
        """Calls `receiver` now, or from a later `collect`."""
        known = self.cache.get(text)
        if known is not None:
            receiver(known, None)
            return
        job = self._by_text.get(text)
        if job is not None:
            job.receivers.append(receiver)
            return
        self._num_jobs += 1
        self._jobs[self._num_jobs] = self._by_text[text] = _Job(text, [receiver])
        self.trials.submit(Trial(self._num_jobs, text))

    def compile_again(self, grammar: Grammar) -> LLMatcher | None:
        """A matcher that shares nothing with others of its grammar; None where that would take too long."""
        self.cache.drop(grammar.text)
        return self._vocabulary.compile(grammar.text) if grammar.is_quick else None

    def collect(self) -> None:
        """Takes in verdicts of trials and compiled grammars. Raises `TrialsEnded` when that is not possible."""
        self.trials.flush()
        for verdict in self.trials.verdicts():
            job = self._jobs[verdict.number]
            if verdict.error is not None:
                self._end(verdict.number, None, verdict.error)
                continue
            job.num_bytes = verdict.num_bytes
            job.compiled = self._thread.submit(self._compile, job.text)
            job.compiled.add_done_callback(lambda _: os.eventfd_write(self._bell, 1))
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
        for number, job in list(self._jobs.items()):
            if job.compiled is None or not job.compiled.done():
                continue
            grammar = job.compiled.result()
            error = error_of(grammar.matcher)
            if error is None:
                self.cache.put(grammar, job.num_bytes)
            self._end(number, grammar if error is None else None, error)

    def _compile(self, text: str) -> Grammar:
        """In the thread."""
        start = time.monotonic()
        matcher = self._vocabulary.compile(text)
        return Grammar(text, matcher, is_quick=time.monotonic() - start < _QUICK_SECONDS)

    def _end(self, number: int, grammar: Grammar | None, error: str | None) -> None:
        job = self._jobs.pop(number)
        del self._by_text[job.text]
        for receiver in job.receivers:
            receiver(grammar, error)
