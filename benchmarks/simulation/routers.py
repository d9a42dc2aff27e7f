"""Which replica a request goes to. Routers see what a real one could: what they sent, and how it gets on.

Round robin needs to see nothing and is no class here: its replicas are simulated apart (`fleet.py`).
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate

from benchmarks.simulation.replica import Replica
from benchmarks.simulation.trace import TraceRequest

ROUND_ROBIN = "round-robin"
_MOST_OF_MEAN = 1.25
"""A replica with more open requests than this multiple of the mean, and one, gets none for the sake of its cache."""


class Router(ABC):
    """Asked once for each request, in order of arrival."""

    @abstractmethod
    def pick(self, request: TraceRequest, replicas: Sequence[Replica]) -> int:
        """The number of the replica that gets the request."""


class LeastLoaded(Router):
    """To the fewest prompt tokens that wait for their first token, then to the fewest open requests, then in turn."""

    def __init__(self, num_replicas: int, num_cached_tokens: int) -> None:
        self._num_replicas = num_replicas
        self._last = -1

    def pick(self, request: TraceRequest, replicas: Sequence[Replica]) -> int:
        turns = [(self._last + 1 + turn) % self._num_replicas for turn in range(self._num_replicas)]
        self._last = min(turns, key=lambda number: _load(replicas[number]))
        return self._last


class PrefixAware(Router):
    """To the replica that was sent most of the prompt before, unless it has too many requests; among equal ones to the
    least loaded. What a replica was sent is forgotten when its cache cannot hold it any more."""

    def __init__(self, num_replicas: int, num_cached_tokens: int) -> None:
        self._capacity = num_cached_tokens
        self._sent: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(num_replicas)]
        """Of each replica: chain of segments -> tokens of its last one, the least recently used first."""
        self._num_tokens = [0] * num_replicas
        self._least_loaded = LeastLoaded(num_replicas, num_cached_tokens)

    def pick(self, request: TraceRequest, replicas: Sequence[Replica]) -> int:
        chains = list(accumulate(request.segments, lambda chain, segment: hash((chain, *segment)), initial=0))[1:]
        most = _MOST_OF_MEAN * sum(replica.num_unfinished for replica in replicas) / len(replicas) + 1
        free = [number for number, replica in enumerate(replicas) if replica.num_unfinished <= most]
        found = {number: self._num_found(self._sent[number], chains, request) for number in free}
        best = max(found.values())
        if best:
            picked = min((number for number in free if found[number] == best), key=lambda n: _load(replicas[n]))
        else:
            picked = self._least_loaded.pick(request, replicas)
        self._remember(picked, chains, request)
        return picked

    @staticmethod
    def _num_found(sent: OrderedDict[int, int], chains: list[int], request: TraceRequest) -> int:
        num_tokens = 0
        for chain, (_, length) in zip(chains, request.segments, strict=True):
            if chain not in sent:
                break
            num_tokens += length
        return num_tokens

    def _remember(self, number: int, chains: list[int], request: TraceRequest) -> None:
        sent = self._sent[number]
        for chain, (_, length) in reversed(list(zip(chains, request.segments, strict=True))):
            if chain not in sent:
                self._num_tokens[number] += length
            sent[chain] = length
            sent.move_to_end(chain)
        while self._num_tokens[number] > self._capacity:
            self._num_tokens[number] -= sent.popitem(last=False)[1]


def _load(replica: Replica) -> tuple[int, int]:
    return replica.num_waiting_tokens, replica.num_unfinished


ROUTERS: dict[str, Callable[[int, int], Router]] = {"least-loaded": LeastLoaded, "prefix": PrefixAware}
"""By name; made of the number of replicas and the tokens that the cache of each holds."""
