"""A ring of slots in shared memory with one writer and any number of readers.

The memory is a sealed memfd that travels by descriptor: it has no name, so nothing is left behind however a process
dies. A slot's sequence number is stored last, as one aligned 8-byte store; each reader stores how far it has read.
Sequence numbers start at 1; number n lies in slot (n - 1) % num_slots.

A slot may have a late part: memory beside it with a sequence number of its own, for what is known only after the slot
had to go. It may be written by another process than the slot, before or after it, once the slot is free; whether there
will be one is said by the slot's contents. Numbers of slots without one are skipped. A reader may go on without a late
part, so its writer may still write to the slot when that is used again: what it writes for the earlier number counts
for nobody, and it writes for the later one only after that.

Plain stores are enough between x86-64 processes (stores become visible in order). On a weaker memory model a reader
must rely on the doorbell message that follows each store, whose system calls order memory.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Callable

import numpy as np

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_PAGE = mmap.PAGESIZE
_LINE_WORDS = 8  # uint64 words in a cache line: each counter has a line of its own
SPIN_NS = 40_000
"""How long a reader looks at a sequence number before it goes to sleep: the next one is usually there in that time."""


class Ring:
    """Both ends of a ring; which methods a process may call follows from its role (writer, or reader number r)."""

    def __init__(self, fd: int, slot_bytes: int, num_slots: int, num_readers: int = 1, late_bytes: int = 0) -> None:
        """Maps the ring behind `fd`. Raises `ValueError` when the file has another size than the arguments imply.

        `late_bytes` is the size of each slot's late part.
        """
        self.fd = fd
        self.num_slots = num_slots
        total = self.total_bytes(slot_bytes, num_slots, num_readers, late_bytes)
        if os.fstat(fd).st_size != total:
            raise ValueError(f"The ring has {os.fstat(fd).st_size} bytes where {total} were agreed on.")
        self._mmap = mmap.mmap(fd, total)
        num_counters = 2 * num_slots + num_readers
        counters = np.frombuffer(self._mmap, np.uint64, num_counters * _LINE_WORDS)
        counters = counters.reshape(num_counters, _LINE_WORDS)[:, 0]
        self._published, self._published_late = counters[:num_slots], counters[num_slots : 2 * num_slots]
        self._consumed = counters[2 * num_slots :]
        whole = memoryview(self._mmap)
        starts = range(_counter_bytes(num_slots, num_readers), total, _pages(slot_bytes) + _pages(late_bytes))
        self.slots = [whole[start:][:slot_bytes] for start in starts]
        self.late_slots = [whole[start + _pages(slot_bytes) :][:late_bytes] for start in starts]

    @staticmethod
    def total_bytes(slot_bytes: int, num_slots: int, num_readers: int = 1, late_bytes: int = 0) -> int:
        """The size of the shared memory, whole pages."""
        return _counter_bytes(num_slots, num_readers) + num_slots * (_pages(slot_bytes) + _pages(late_bytes))

    @classmethod
    def create(cls, name: str, slot_bytes: int, num_slots: int, num_readers: int = 1, late_bytes: int = 0) -> "Ring":
        """A new ring; `name` shows in /proc only. Pass `fd` on to the other processes."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, cls.total_bytes(slot_bytes, num_slots, num_readers, late_bytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd, slot_bytes, num_slots, num_readers, late_bytes)

    def slot_of(self, sequence: int) -> int:
        return (sequence - 1) % self.num_slots

    def is_free(self, sequence: int) -> bool:
        """Writer: whether every reader is done with the slot that `sequence` will use, and with its late part."""
        return sequence <= self.num_slots + int(self._consumed.min())

    def publish(self, sequence: int) -> None:
        """Writer: the slot of `sequence` is complete."""
        self._published[self.slot_of(sequence)] = sequence

    def publish_late(self, sequence: int) -> None:
        """Writer of late parts: that of `sequence` is complete."""
        self._published_late[self.slot_of(sequence)] = sequence

    def is_published(self, sequence: int) -> bool:
        """Reader: whether `sequence` can be read."""
        return int(self._published[self.slot_of(sequence)]) == sequence

    def is_late_published(self, sequence: int) -> bool:
        """Reader: whether the late part of `sequence` can be read."""
        return int(self._published_late[self.slot_of(sequence)]) == sequence

    def wait(self, sequence: int, sleep: Callable[[], None]) -> None:
        """Reader: spins briefly, then calls `sleep`, which returns when a doorbell rings, until `sequence` is there."""
        deadline = time.monotonic_ns() + SPIN_NS
        while not self.is_published(sequence):
            if time.monotonic_ns() >= deadline:
                sleep()

    def release(self, reader: int, sequence: int) -> None:
        """Reader: it no longer needs slots up to `sequence`, late parts included."""
        self._consumed[reader] = sequence

    @property
    def buffer(self) -> mmap.mmap:
        """The whole mapping, to be registered as pinned memory."""
        return self._mmap


def _counter_bytes(num_slots: int, num_readers: int) -> int:
    return _pages((2 * num_slots + num_readers) * _LINE_WORDS * 8)


def _pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
