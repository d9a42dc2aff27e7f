"""Named numpy arrays at fixed, aligned places of one buffer: the tensor handoff's memory layout.

A layout is a function of capacities that both sides know, so a slot needs no description of itself and a GPU can copy
it whole: every array of a slot has the same address in every step, which CUDA graphs need.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64


class ArrayLayout:
    """Places arrays one after the other, each on a cache line of its own."""

    def __init__(self, fields: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> None:
        self.offsets: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        """Bytes that each takes, up to where the next one begins."""
        self.fields = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in fields.items()}
        offset = 0
        for name, (dtype, shape) in self.fields.items():
            self.offsets[name] = offset
            self.sizes[name] = -(-dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT
            offset += self.sizes[name]
        self.num_bytes = offset

    def views(self, buffer: memoryview | bytearray) -> dict[str, np.ndarray]:
        """The arrays over `buffer`, which has at least `num_bytes` bytes; nothing is copied."""
        assert len(buffer) >= self.num_bytes, (len(buffer), self.num_bytes)
        return {
            name: np.frombuffer(buffer, dtype, math.prod(shape), self.offsets[name]).reshape(shape)
            for name, (dtype, shape) in self.fields.items()
        }
