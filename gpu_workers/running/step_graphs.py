"""CUDA graphs of forward passes by padded size, in one memory pool.

A graph's inputs and outputs lie in tensors of fixed addresses that belong to the runner; its intermediates lie in the
pool, which all graphs share because they run one after the other.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from engine_core.config.step_sizes import StepSize
from gpu_workers.loader import ProgressCallback


class StepGraphs:
    def __init__(self) -> None:
        self._pool = torch.cuda.MemPool()
        self._graphs: dict[StepSize, torch.cuda.CUDAGraph] = {}

    def capture(self, forward: Callable[[StepSize], None], sizes: list[StepSize], progress: ProgressCallback) -> None:
        """Captures `forward` for each of `sizes` on the current stream, which must have run all of its kernels."""
        progress(0, len(sizes))
        pool: Any = self._pool.id  # a pair of numbers like any pool's handle, though torch types them apart
        for done, size in enumerate(sizes, start=1):
            # Not torch.cuda.graph(): it collects garbage and empties the allocator's cache for every single graph.
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            forward(size)
            graph.capture_end()
            self._graphs[size] = graph
            progress(done, len(sizes))

    def memory(self) -> AbstractContextManager[None]:
        """What is allocated inside lies where the graphs have their intermediates: a step without a graph needs no
        memory of its own, because it runs before or after all of them on their stream."""
        return torch.cuda.use_mem_pool(self._pool)

    def replay(self, size: StepSize) -> None:
        """Queues the graph of `size` on the current stream."""
        self._graphs[size].replay()
