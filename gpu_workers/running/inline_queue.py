"""The queue of a CPU: steps run when they are launched, in the memory of the rings."""

import mmap
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch


class InlineQueue:
    """As `Queue` says; what other queues copy lies where it is used already."""

    runs_inline = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def enter(self) -> None:
        """Any thread may launch."""

    def open(
        self,
        plans: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        rings: Sequence[mmap.mmap],
        bulk_word: int,
    ) -> None:
        self._plans = plans
        self.device_results = list(results)
        self._started_ns = [0 for _ in plans]
        self._ended_ns = [0 for _ in plans]

    def open_masks(self, masks: Sequence[torch.Tensor], mask_rows: Sequence[torch.Tensor]) -> None:
        self._masks, self._mask_rows = masks, mask_rows

    def begin(self, slot: int, num_bulk_words: int) -> torch.Tensor:
        self._started_ns[slot] = time.monotonic_ns()
        return self._plans[slot]

    def mark_forward(self, slot: int) -> None:
        now = time.monotonic_ns()
        self._forward = now, now - self._started_ns[slot]

    def forward_ended(self, slot: int) -> tuple[int, int] | None:
        return self._forward

    def masks(self, slot: int, num_masks: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mask_rows[slot][:num_masks], self._masks[slot][:num_masks]

    def end(self, slot: int, words: slice) -> None:
        self._ended_ns[slot] = time.monotonic_ns()

    def wait(self, slot: int) -> tuple[int, int]:
        return self._started_ns[slot], self._ended_ns[slot]

    def pin(self, memory: mmap.mmap) -> None:
        """Memory is memory."""

    def unpin(self, memory: mmap.mmap) -> None:
        """Nothing was done."""

    def storing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def loading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def free_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is ever under way."""
