"""A ring of slots in shared memory with one writer and any number of readers.

The memory is a sealed memfd that travels by descriptor: it has no name, so nothing is left behind however a process
dies. A slot's sequence number is stored last, as one aligned 8-byte store; each reader stores how far it has read.
Sequence numbers start at 1; number n lies in slot (n - 1) % num_slots.

Plain stores are enough between x86-64 processes (stores become visible in order). On a weaker memory model a reader
must rely on the doorbell message that follows each store, whose system calls order memory.
"""

import fcntl
import mmap
import os

import numpy as np

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_PAGE = mmap.PAGESIZE
_LINE_WORDS = 8  # uint64 words in a cache line: each counter has a line of its own


class Ring:
    """Both ends of a ring; which methods a process may call follows from its role (writer, or reader number r)."""

    def __init__(self, fd: int, slot_bytes: int, num_slots: int, num_readers: int = 1) -> None:
        """Maps the ring behind `fd`. Raises `ValueError` when the file has another size than the arguments imply."""
        self.fd = fd
        self.num_slots = num_slots
        self._slot_stride = _pages(slot_bytes)
        total = self.total_bytes(slot_bytes, num_slots, num_readers)
        if os.fstat(fd).st_size != total:
            raise ValueError(f"The ring has {os.fstat(fd).st_size} bytes where {total} were agreed on.")
        self._mmap = mmap.mmap(fd, total)
        counters = np.frombuffer(self._mmap, np.uint64, (num_slots + num_readers) * _LINE_WORDS)
        counters = counters.reshape(num_slots + num_readers, _LINE_WORDS)[:, 0]
        self._published = counters[:num_slots]
        self._consumed = counters[num_slots:]
        start = _pages((num_slots + num_readers) * _LINE_WORDS * 8)
        whole = memoryview(self._mmap)
        self.slots = [whole[start + i * self._slot_stride :][:slot_bytes] for i in range(num_slots)]

    @staticmethod
    def total_bytes(slot_bytes: int, num_slots: int, num_readers: int = 1) -> int:
        """The size of the shared memory, whole pages."""
        return _pages((num_slots + num_readers) * _LINE_WORDS * 8) + num_slots * _pages(slot_bytes)

    @classmethod
    def create(cls, name: str, slot_bytes: int, num_slots: int, num_readers: int = 1) -> "Ring":
        """A new ring; `name` shows in /proc only. Pass `fd` on to the other processes."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, cls.total_bytes(slot_bytes, num_slots, num_readers))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return cls(fd, slot_bytes, num_slots, num_readers)

    def slot_of(self, sequence: int) -> int:
        return (sequence - 1) % self.num_slots

    def is_free(self, sequence: int) -> bool:
        """Writer: whether every reader is done with the slot that `sequence` will use."""
        return sequence <= self.num_slots + int(self._consumed.min())

    def publish(self, sequence: int) -> None:
        """Writer: the slot of `sequence` is complete."""
        self._published[self.slot_of(sequence)] = sequence

    def is_published(self, sequence: int) -> bool:
        """Reader: whether `sequence` can be read."""
        return int(self._published[self.slot_of(sequence)]) == sequence

    def release(self, reader: int, sequence: int) -> None:
        """Reader: it no longer needs slots up to `sequence`."""
        self._consumed[reader] = sequence

    @property
    def buffer(self) -> mmap.mmap:
        """The whole mapping, to be registered as pinned memory."""
        return self._mmap


def _pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
