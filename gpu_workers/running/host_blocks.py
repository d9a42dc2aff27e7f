"""The second tier of the KV cache in host memory: whole blocks, moved by a GPU's copy engines.

A block is one contiguous piece of the cache, all layers together (2 MiB of an 8B model), so that a plain asynchronous
copy runs at PCIe's rate without a multiprocessor, which the step before still uses; a kernel that reads and writes
mapped memory would be one launch but take some of them. A copy costs the launching thread some 8 us; blocks and slots
that go up together are one copy.

The memory is taken and pinned piece by piece on a thread of its own while the worker serves already, because 4 GiB take
about a second. Slots count once they are pinned, and each result tells the engine core how many there are.
"""

import contextlib
import logging
import mmap
import threading
from collections.abc import Iterator

import numpy as np
import torch

from engine_core.config.errors import ConfigError
from engine_core.ipc.step import StepPlan
from gpu_workers.running.queue import Queue

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**20
"""Pinned at once. While the driver pins, launches may wait for it: some 10 ms."""

PART_BYTES = 16 * 2**20
"""Loaded at once where a step stores as well: while a part is loaded the stores that the next one needs are made."""


class HostBlocks:
    """Slots 0 .. `num_slots` - 1 in pieces of whole slots, so that no copy crosses from one registration to another."""

    def __init__(self, queue: Queue, kv_cache: torch.Tensor, num_slots: int, piece_bytes: int = PIECE_BYTES) -> None:
        """Pins the first piece. Raises `ConfigError` when the driver refuses. `kv_cache` [num_blocks, ...]."""
        self._queue = queue
        self._cache = kv_cache.flatten(1)
        self._num_slots = num_slots
        bytes_per_block = self._cache.shape[1] * self._cache.element_size()
        self._slots_per_piece = max(1, piece_bytes // bytes_per_block)
        self._blocks_per_part = max(1, PART_BYTES // bytes_per_block)
        self._memory: list[mmap.mmap] = []
        self._pieces: list[torch.Tensor] = []  # [slots_per_piece, values of a block]; the last one may have fewer slots
        self.num_ready = 0
        """Slots that plans may name from now on."""
        self._closing = threading.Event()
        self._add_piece()
        self._thread = threading.Thread(target=self._add_pieces, name="quire-pinning", daemon=True)

    def start(self) -> None:
        """Begins to pin the other pieces, in the background."""
        self._thread.start()

    def close(self) -> None:
        """Waits for what was queued and gives all memory back."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._queue.synchronize()
        self.num_ready = 0
        self._pieces.clear()
        while self._memory:
            self._queue.unpin(self._memory.pop())

    def copy(self, plan: StepPlan) -> None:
        """Queues the copies that stand at the beginning of a step, so that they run beside the steps before it."""
        if not plan.num_stores and not plan.num_loads:
            return
        all_stores, all_loads = plan.stores[: plan.num_stores], plan.loads[: plan.num_loads]
        for stores, loads in self._parts(_by_block(all_stores), _by_block(all_loads)):
            if len(stores):
                with self._queue.storing():
                    for cached, pinned in self._runs(stores):
                        pinned.copy_(cached, non_blocking=True)
            if len(loads):
                with self._queue.loading():
                    for cached, pinned in self._runs(loads):
                        cached.copy_(pinned, non_blocking=True)

    def _parts(self, stores: np.ndarray, loads: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Stores and loads in parts, by block. A load may go to a block only when that is stored; it waits for the
        stores up to its own part and not for all, so that both directions of the link are busy."""
        if len(stores) == 0 or len(loads) == 0 or np.isin(loads[:, 1], stores[:, 1]).any():
            yield stores, loads
            return
        first = 0
        for start in range(0, len(loads), self._blocks_per_part):
            part = loads[start : start + self._blocks_per_part]
            end = int(np.searchsorted(stores[:, 0], part[-1, 0], side="right"))
            yield stores[first:end], part
            first = end
        yield stores[first:], loads[:0]

    def _runs(self, pairs: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The memory behind pairs of block and slot in order of blocks, int32 [N, 2]: on the device and on the host, in
        as few parts as there are runs of neighbours."""
        pieces, places = np.divmod(pairs[:, 1], self._slots_per_piece)
        breaks = (np.diff(pairs, axis=0) != 1).any(axis=1) | (np.diff(pieces) != 0)
        starts = np.flatnonzero(np.concatenate([[True], breaks]))
        counts = np.diff(starts, append=len(pairs))
        columns = (pairs[starts, 0], pieces[starts], places[starts], counts)
        for block, piece, place, count in zip(*(column.tolist() for column in columns), strict=True):
            yield self._cache[block : block + count], self._pieces[piece][place : place + count]

    def _add_pieces(self) -> None:
        try:
            while self.num_ready < self._num_slots and not self._closing.is_set():
                self._add_piece()
        except ConfigError as error:
            slots = f"{self.num_ready} of {self._num_slots} blocks"
            logger.warning("The host tier of the KV cache stays at %s: %s", slots, error)

    def _add_piece(self) -> None:
        count = min(self._slots_per_piece, self._num_slots - self.num_ready)
        num_values = self._cache.shape[1]
        memory = mmap.mmap(-1, count * num_values * self._cache.element_size(), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages pins small ones, more slowly
            memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(memory, np.uint8).fill(0)  # without the interpreter's lock: only then has it pages to be pinned
        self._queue.pin(memory)
        self._memory.append(memory)
        self._pieces.append(torch.frombuffer(memory, dtype=self._cache.dtype).view(count, num_values))
        self.num_ready += count


def _by_block(pairs: np.ndarray) -> np.ndarray:
    ordered: np.ndarray = pairs[np.argsort(pairs[:, 0])]
    return ordered
