"""The ring between processes: order, flow control, sealed memory that travels by descriptor."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine_core.ipc.ring import Ring

READER = """
import sys
import numpy as np
from engine_core.ipc.ring import Ring
ring = Ring(int(sys.argv[1]), 1000, 3)
for sequence in range(1, 8):
    sys.stdin.readline()  # the doorbell
    assert ring.is_published(sequence)
    print(int(np.frombuffer(ring.slots[ring.slot_of(sequence)], np.int64).sum()), flush=True)
    ring.release(0, sequence)
"""


def test_numbers_cross_processes_in_order() -> None:
    ring = Ring.create("test", 1000, 3)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(ring.fd)],
        pass_fds=[ring.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    for sequence in range(1, 8):
        assert ring.is_free(sequence)
        slot = np.frombuffer(ring.slots[ring.slot_of(sequence)], np.int64)
        slot[:] = sequence
        ring.publish(sequence)
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) == 125 * sequence
    reader.communicate()
    assert reader.returncode == 0
    os.close(ring.fd)


def test_a_slot_is_free_when_the_slowest_reader_is_done() -> None:
    ring = Ring.create("test", 8, 2, num_readers=2)
    assert ring.is_free(2)
    assert not ring.is_free(3)
    ring.release(0, 1)
    assert not ring.is_free(3)
    ring.release(1, 1)
    assert ring.is_free(3)
    assert not ring.is_free(4)
    os.close(ring.fd)


def test_the_memory_cannot_be_resized() -> None:
    ring = Ring.create("test", 8, 2)
    with pytest.raises(PermissionError):
        os.ftruncate(ring.fd, 0)
    with pytest.raises(ValueError, match="agreed"):
        Ring(ring.fd, 1_000_000, 2)
    os.close(ring.fd)
