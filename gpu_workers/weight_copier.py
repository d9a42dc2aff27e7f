"""How the bytes of a checkpoint get into parameters: directly on a CPU, through pinned buffers on a GPU.

A source is a view of a mapped file. On the way to a GPU it is cut into pieces: torch's threads copy each from the page
cache into a pinned buffer, converted to the parameter's dtype if need be, and from there the device fetches it by
itself while the next piece fills the next buffer. A copy straight from the mapped file would be made by one thread of
the driver, through a buffer of its own, and waited for.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

PIECE_BYTES = 32 * 2**20
"""Large enough that starting a copy costs nothing beside it, small enough that the first one starts at once."""
NUM_BUFFERS = 4


class WeightCopier(Protocol):
    """Copies from a checkpoint's tensors to parameters."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """`target` and `source`, which is on the CPU, have the same shape; dtypes may differ. The source is not needed
        any longer afterwards."""

    def finish(self) -> None:
        """Waits until all targets are complete."""


class DirectCopier:
    """Targets in the machine's memory."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def finish(self) -> None:
        pass


class StagedCopier:
    """Targets on a GPU, filled on its current stream."""

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES, num_buffers: int = NUM_BUFFERS) -> None:
        is_cuda = device.type == "cuda"  # on anything else (tests) copies are complete when they return
        self._buffers = [torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(num_buffers)]
        self._fetched = [torch.cuda.Event() if is_cuda else None for _ in range(num_buffers)]
        """Recorded after the copy out of each buffer."""
        self._piece_bytes = piece_bytes
        self._next = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        for target_piece, source_piece in pieces(target, source, self._piece_bytes):
            buffer, fetched = self._buffers[self._next], self._fetched[self._next]
            self._next = (self._next + 1) % len(self._buffers)
            if fetched is not None:
                fetched.synchronize()  # returns at once while nothing was recorded
            num_bytes = target_piece.numel() * target_piece.element_size()
            staged = buffer[:num_bytes].view(target_piece.dtype).view(target_piece.shape)
            staged.copy_(source_piece)
            target_piece.copy_(staged, non_blocking=True)
            if fetched is not None:
                fetched.record()

    def finish(self) -> None:
        for fetched in self._fetched:
            if fetched is not None:
                fetched.synchronize()


def make_copier(device: torch.device) -> WeightCopier:
    """For parameters on `device`."""
    return DirectCopier() if device.type == "cpu" else StagedCopier(device)


def pieces(target: torch.Tensor, source: torch.Tensor, max_bytes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cuts both alike into parts whose target takes at most `max_bytes`: runs of rows where a row is not larger."""
    if target.numel() == 0:
        return
    num_bytes = target.numel() * target.element_size()
    if num_bytes <= max_bytes:
        yield target, source
        return
    num_rows = max_bytes * len(target) // num_bytes
    if num_rows == 0:
        for target_row, source_row in zip(target, source, strict=True):
            yield from pieces(target_row, source_row, max_bytes)
        return
    for first in range(0, len(target), num_rows):
        yield target[first : first + num_rows], source[first : first + num_rows]
