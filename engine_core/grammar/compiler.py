"""Grammars by their text: compiled once, kept while there is room for them.

A grammar is tried in a child first (`trials`). What passes is compiled here, in a thread that does not hold the
interpreter's lock, so that masks are filled meanwhile.

Matchers of one compilation share what its lexer has learned, behind a lock: threads that fill their masks at the same
time wait for each other. So a grammar that many requests have at once is compiled several times.
"""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from llguidance import LLMatcher

from engine_core.grammar.trials import Trial, TrialProcess
from engine_core.grammar.vocabulary import Vocabulary, error_of
from engine_core.ipc.grammar_messages import GrammarError

CACHE_BYTES = 128 * 2**20
_ENTRY_BYTES = 64 * 2**10
"""What any grammar takes at least: little ones come out of memory that the trial had already."""

_QUICK_SECONDS = 0.05
_MATCHERS_PER_LEXER = 4
"""With more open ones on each, a further lexer is worth its compilation."""


@dataclass(slots=True, eq=False)
class Lexer:
    """One compilation of a grammar."""

    matcher: LLMatcher
    """At the beginning of its output; copy it."""
    num_open: int = 0
    """Its copies in use."""


@dataclass(slots=True, eq=False)
class Grammar:
    """A compiled one."""

    text: str
    is_quick: bool
    """Whether it can be compiled again while steps wait."""
    lexers: list[Lexer]
    num_bytes: int = 0
    """About what a compilation takes, beside the text."""

    def idlest(self) -> Lexer:
        """The one with the fewest copies in use."""
        return min(self.lexers, key=lambda lexer: lexer.num_open)


Receiver = Callable[[Grammar | None, GrammarError | None], None]
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

    def put(self, grammar: Grammar) -> None:
        """Also to be called when it has grown."""
        self.drop(grammar.text)
        num_bytes = len(grammar.text) + len(grammar.lexers) * (grammar.num_bytes + _ENTRY_BYTES)
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
    receivers: deque[Receiver] = field(default_factory=deque)
    grammar: Grammar | None = None
    """What a further lexer is compiled for."""
    num_bytes: int = 0
    compiled: "Future[tuple[Lexer, bool]] | None" = None


class GrammarCompiler:
    """Poll `trials` and `fileno()`, then call `collect`."""

    def __init__(self, vocabulary: Vocabulary, max_lexers: int = 1) -> None:
        """`max_lexers`: of one grammar, where many requests have it."""
        self._max_lexers = max_lexers
        self.trials = TrialProcess(vocabulary)
        self.cache = GrammarCache()
        self._vocabulary = vocabulary
        self._jobs: dict[int, _Job] = {}
        self._by_text: dict[str, _Job] = {}
        self._num_jobs = 0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
        self._thread.submit(os.getpid).result()  # the thread is there before the system has none left

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
        if known is not None and not self._is_crowded(known):
            receiver(known, None)
            return
        job = self._by_text.get(text)
        if job is None:
            job = self._start(text, known)
        job.receivers.append(receiver)

    def _start(self, text: str, grammar: Grammar | None) -> _Job:
        """Of a grammar that is known for a further lexer, else for the first one, once it has been tried."""
        self._num_jobs += 1
        job = self._jobs[self._num_jobs] = self._by_text[text] = _Job(text, grammar=grammar)
        if grammar is None:
            self.trials.submit(Trial(self._num_jobs, text))
        else:
            self._submit(job)
        return job

    def _submit(self, job: _Job) -> None:
        job.compiled = self._thread.submit(self._compile, job.text)
        job.compiled.add_done_callback(lambda _: os.eventfd_write(self._bell, 1))

    def _is_crowded(self, grammar: Grammar) -> bool:
        """Whether the next matcher should wait for a lexer more."""
        return (
            grammar.is_quick
            and len(grammar.lexers) < self._max_lexers
            and grammar.idlest().num_open >= _MATCHERS_PER_LEXER
        )

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
            self._submit(job)
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
        for number, job in list(self._jobs.items()):
            if job.compiled is None or not job.compiled.done():
                continue
            lexer, is_quick = job.compiled.result()
            error = error_of(lexer.matcher)
            if error is not None and job.grammar is None:
                self._end(number, None, GrammarError(error))
                continue
            grammar = job.grammar or Grammar(job.text, is_quick, [], job.num_bytes)
            if error is None:
                grammar.lexers.append(lexer)
            else:
                grammar.is_quick = False  # the lexers that it has must do
            if job.grammar is None or self.cache.get(job.text) is grammar:
                self.cache.put(grammar)
            self._end(number, grammar, None)

    def _compile(self, text: str) -> tuple[Lexer, bool]:
        """In the thread; also whether it was quick."""
        start = time.monotonic()
        matcher = self._vocabulary.compile(text)
        return Lexer(matcher), time.monotonic() - start < _QUICK_SECONDS

    def _end(self, number: int, grammar: Grammar | None, error: GrammarError | None) -> None:
        """Those who asked open their matchers, as many as there is room for before the next lexer."""
        job = self._jobs.pop(number)
        del self._by_text[job.text]
        while job.receivers:
            if grammar is not None and self._is_crowded(grammar):
                self._start(job.text, grammar).receivers = job.receivers
                return
            job.receivers.popleft()(grammar, error)
