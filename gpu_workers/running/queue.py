"""What a runner needs of a queue: it carries plans to the device, runs what is launched, and carries results back."""

import mmap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Queue(Protocol):
    """`StreamQueue` on a GPU; `InlineQueue` where all has happened when a call returns. Slots are the rings'."""

    device: torch.device
    runs_inline: bool
    """Whether a step has ended when it has been launched. Then there are no graphs either."""
    device_results: list[torch.Tensor]
    """Where the sampler writes a step's result, int32 words laid out as the slot that they are copied to."""

    def enter(self) -> None:
        """The calling thread launches all steps from now on."""

    def open(
        self,
        plans: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        rings: Sequence[mmap.mmap],
        bulk_word: int,
    ) -> None:
        """`plans` and `results`: the slots of the two rings as int32 tensors over `rings`. Most plans end at their word
        `bulk_word`."""

    def open_masks(self, masks: Sequence[torch.Tensor], mask_rows: Sequence[torch.Tensor]) -> None:
        """`masks` int32 [S, W] and `mask_rows` int32 [S] of each slot of the ring of plans."""

    def begin(self, slot: int, num_bulk_words: int) -> torch.Tensor:
        """A step begins: the words of its plan on the device, with so many words of bulk."""

    def mark_forward(self, slot: int) -> None:
        """What was launched so far is the step's forward pass."""

    def forward_ended(self, slot: int) -> tuple[int, int] | None:
        """When the forward pass that was marked last ended, in monotonic ns, and how many ns it took; None while it
        runs."""

    def masks(self, slot: int, num_masks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows int32 [M] of the slot's masks, and the masks int32 [M, W], on the device."""

    def end(self, slot: int, words: slice) -> None:
        """The step is launched; `words` of its result are wanted."""

    def wait(self, slot: int) -> tuple[int, int]:
        """Until the slot's result is complete; when the step started and ended, in monotonic ns."""

    def pin(self, memory: mmap.mmap) -> None:
        """Makes host memory fit for copies by the device. Raises `ConfigError` when that is refused."""

    def unpin(self, memory: mmap.mmap) -> None:
        """Takes back what `pin` did, before the memory goes."""

    def storing(self) -> AbstractContextManager[None]:
        """What is launched inside copies blocks to the host before the step that follows writes to them."""

    def loading(self) -> AbstractContextManager[None]:
        """What is launched inside copies blocks from the host, after the stores so far and before the step that follows
        reads them."""

    def synchronize(self) -> None:
        """Waits for all that was launched; not for the steady state."""

    def free_bytes(self) -> int:
        """What is left of the device's memory; 0 where that says nothing."""

    def close(self) -> None:
        """Waits for all that was launched and gives the rings' memory back."""
