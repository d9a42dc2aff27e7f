"""How long a call takes on a device, without what launching it costs: many calls in one CUDA graph.

On a CPU, where this is only for trials, calls are timed one by one.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

GRAPH_SECONDS = 2e-3
"""A graph repeats the calls until it takes about so long, so that its own start is a small part."""
REPLAYS = 20


def median_seconds(calls: Sequence[Callable[[], object]], device: str) -> float:
    """Of one call, over replays of all `calls` in turn. Each should work on memory of its own, more than the caches
    hold together."""
    for call in calls:
        call()  # compiles
    return _graph_seconds(calls) if device == "cuda" else _single_seconds(calls)


def _graph_seconds(calls: Sequence[Callable[[], object]]) -> float:
    once = _replay(_capture(calls, rounds=1), replays=3)
    rounds = max(1, min(200, int(GRAPH_SECONDS / once)))
    return _replay(_capture(calls, rounds), REPLAYS) / (rounds * len(calls))


def _capture(calls: Sequence[Callable[[], object]], rounds: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def _replay(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    graph.replay()  # the first one uploads it
    seconds = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def _single_seconds(calls: Sequence[Callable[[], object]]) -> float:
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
