"""Streams, events and pinned rings of one GPU: plans flow in, steps run, results flow out, and nobody waits on the way.

Three streams: copies in, compute, copies out. A plan is copied while the step before it runs; a result is copied while
the next step runs. The only place that waits is `wait`, which a thread of its own calls. Blocks that go to host memory
and come back have a stream for each direction, because the link has two.
"""

import contextlib
import mmap
import time
from collections.abc import Iterator, Sequence

import torch

from engine_core.config.errors import ConfigError


class StreamQueue:
    """A GPU's. One per worker. Slots are those of the rings: each has its staging memory and its events."""

    runs_inline = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copy_in = torch.cuda.Stream(device)
        self._compute = torch.cuda.Stream(device)
        self._copy_out = torch.cuda.Stream(device)
        self._store, self._load = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._stored, self._loaded = torch.cuda.Event(), torch.cuda.Event()

    def enter(self) -> None:
        """Makes the compute stream the current one of the calling thread, which launches all steps from now on."""
        torch.cuda.set_stream(self._compute)

    def open(
        self,
        plans: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        rings: Sequence[mmap.mmap],
        bulk_word: int,
    ) -> None:
        """`plans` and `results`: the slots of the two rings as int32 tensors over `rings`, which become pinned. Most
        plans end at their word `bulk_word`."""
        for ring in rings:
            self.pin(ring)
        self._rings = rings
        self._plans, self._results = plans, results
        self._staging = [torch.zeros_like(plan, device=self.device) for plan in plans]
        self._bulk_word = bulk_word
        # Slices cost more than the copies that are made with them.
        self._usual_copies = [
            (staging[:bulk_word], plan[:bulk_word]) for staging, plan in zip(self._staging, plans, strict=True)
        ]
        self.device_results = [torch.zeros_like(result, device=self.device) for result in results]
        """Where the sampler writes a step's result, laid out as the slot that it is copied to."""
        self._copied = [torch.cuda.Event() for _ in plans]
        self._started = [torch.cuda.Event(enable_timing=True) for _ in plans]
        self._ended = [torch.cuda.Event(enable_timing=True) for _ in plans]
        self._forwarded = [torch.cuda.Event(enable_timing=True) for _ in plans]
        self._forward_ended: tuple[int, int] | None = None
        self._collected = [torch.cuda.Event() for _ in plans]
        self._launched_ns = [0 for _ in plans]
        self._last_ended: torch.cuda.Event | None = None
        self._last_ended_ns = 0

    def pin(self, memory: mmap.mmap) -> None:
        """Registers memory with the driver, so that the device copies from and to it by itself. Any thread may call it.
        Raises `ConfigError` when the driver refuses."""
        view = torch.frombuffer(memory, dtype=torch.uint8)
        with torch.cuda.device(self.device):
            error = torch.cuda.cudart().cudaHostRegister(view.data_ptr(), view.numel(), 0)
        if int(error) != 0:
            raise ConfigError(
                f"The driver refuses to pin {view.numel() / 2**20:.1f} MiB of memory (CUDA error {int(error)}); "
                "raise the limit of locked memory (ulimit -l)."
            )

    def unpin(self, memory: mmap.mmap) -> None:
        """Takes back what `pin` did, before the memory goes: the driver refuses what comes to its addresses later."""
        view = torch.frombuffer(memory, dtype=torch.uint8)
        error = torch.cuda.cudart().cudaHostUnregister(view.data_ptr())
        assert int(error) == 0, error

    def close(self) -> None:
        """Waits for all that was queued and gives the rings' memory back."""
        self.synchronize()
        for ring in self._rings:
            self.unpin(ring)

    def synchronize(self) -> None:
        """Waits for all that was queued; not for the steady state."""
        torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """What the driver says is left of the device's memory."""
        return torch.cuda.mem_get_info(self.device)[0]

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """What is queued inside copies blocks to the host before the step that follows writes to them. It waits for no
        step: those that wrote to the blocks have been collected."""
        torch.cuda.set_stream(self._store)
        yield
        torch.cuda.set_stream(self._compute)
        self._stored.record(self._store)
        self._compute.wait_event(self._stored)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """What is queued inside copies blocks from the host, after the stores so far and before the step that follows
        reads the blocks. It waits for no step: nobody uses them."""
        self._load.wait_event(self._stored)
        torch.cuda.set_stream(self._load)
        yield
        torch.cuda.set_stream(self._compute)
        self._loaded.record(self._load)
        self._compute.wait_event(self._loaded)

    def begin(self, slot: int, num_bulk_words: int) -> torch.Tensor:
        """Queues the copy of a plan with so many words of bulk and returns the device's copy; compute waits for it."""
        target, source = self._usual_copies[slot]
        if num_bulk_words:
            num_words = self._bulk_word + num_bulk_words
            target, source = self._staging[slot][:num_words], self._plans[slot][:num_words]
        torch.cuda.set_stream(self._copy_in)
        target.copy_(source, non_blocking=True)
        torch.cuda.set_stream(self._compute)
        copied = self._copied[slot]
        copied.record(self._copy_in)
        self._launched_ns[slot] = time.monotonic_ns()
        self._compute.wait_event(copied)
        self._started[slot].record(self._compute)
        return self._staging[slot]

    def open_masks(self, masks: Sequence[torch.Tensor], mask_rows: Sequence[torch.Tensor]) -> None:
        """`masks` int32 [S, W] and `mask_rows` int32 [S]: where the masks of a step and the rows that they are for lie
        in each slot of the ring of plans, in memory that `open` has pinned."""
        self._masks, self._mask_rows = masks, mask_rows
        self._staged_masks = [torch.zeros_like(one, device=self.device) for one in masks]
        self._staged_mask_rows = [torch.zeros_like(one, device=self.device) for one in mask_rows]

    def mark_forward(self, slot: int) -> None:
        """What was queued so far is the step's forward pass."""
        self._forwarded[slot].record(self._compute)
        self._forward_ended = None

    def forward_ended(self, slot: int) -> tuple[int, int] | None:
        """When the forward pass that was marked last was first seen to have ended, in monotonic ns, and how many ns it
        took; None while it runs."""
        if self._forward_ended is None and self._forwarded[slot].query():
            took_ms = self._started[slot].elapsed_time(self._forwarded[slot])
            self._forward_ended = time.monotonic_ns(), int(took_ms * 1e6)
        return self._forward_ended

    def masks(self, slot: int, num_masks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queues the copy of a slot's masks beside the step's forward; what is queued after it finds them in what this
        returns: the rows int32 [M] and their masks int32 [M, W]. Those of rows that the step skips may be anything."""
        rows, masks = self._staged_mask_rows[slot][:num_masks], self._staged_masks[slot][:num_masks]
        torch.cuda.set_stream(self._copy_in)
        rows.copy_(self._mask_rows[slot][:num_masks], non_blocking=True)
        masks.copy_(self._masks[slot][:num_masks], non_blocking=True)
        torch.cuda.set_stream(self._compute)
        # The event of the plan's own copy has been waited for already, in the queue.
        copied = self._copied[slot]
        copied.record(self._copy_in)
        self._compute.wait_event(copied)
        return rows, masks

    def end(self, slot: int, words: slice) -> None:
        """Queues the copy of a result's `words` to its slot."""
        ended = self._ended[slot]
        ended.record(self._compute)
        self._copy_out.wait_event(ended)
        torch.cuda.set_stream(self._copy_out)
        self._results[slot][words].copy_(self.device_results[slot][words], non_blocking=True)
        torch.cuda.set_stream(self._compute)
        self._collected[slot].record(self._copy_out)

    def wait(self, slot: int) -> tuple[int, int]:
        """Blocks, without the interpreter's lock, until the slot's result is complete. Steps must be waited for in
        order. Returns when the step started and ended on the device, in monotonic ns.

        Device times are differences between events; chained from step to step they would drift, so a step never starts
        before it was launched nor ends after it was seen to have ended.
        """
        self._collected[slot].synchronize()
        now = time.monotonic_ns()
        started_ns = self._launched_ns[slot]
        if self._last_ended is not None:
            gap_ms = self._last_ended.elapsed_time(self._started[slot])
            started_ns = max(started_ns, self._last_ended_ns + int(gap_ms * 1e6))
        ended_ns = started_ns + int(self._started[slot].elapsed_time(self._ended[slot]) * 1e6)
        late = max(0, ended_ns - now)
        self._last_ended, self._last_ended_ns = self._ended[slot], ended_ns - late
        return started_ns - late, ended_ns - late
