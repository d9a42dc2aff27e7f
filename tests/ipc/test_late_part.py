"""The late part of a step: its own memory and sequence number beside the plan's slot, and what the plan says of it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from engine_core.ipc.ring import Ring
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.ipc.step import NUM_MASKS, LateMasks, StepPlan, StepShape, late_layout, plan_layout
from engine_core.plan_writer import PlanWriter
from engine_core.request import Request
from engine_core.row_table import RowTable

NUM_SLOTS = 3
VOCAB_SIZE = 1000
SHAPE = {"max_num_seqs": 5, "max_num_batched_tokens": 64, "max_model_len": 100, "block_size": 16}
NUM_MASK_WORDS = -(-VOCAB_SIZE // 32)
PLAIN, MASKED = StepShape(**SHAPE), StepShape(**SHAPE, num_mask_words=NUM_MASK_WORDS)

WRITER = """
import sys
import numpy as np
from engine_core.ipc.ring import Ring
ring = Ring(int(sys.argv[1]), 1000, 3, 1, 5000)
for sequence in map(int, sys.stdin):
    assert ring.is_free(sequence)
    np.frombuffer(ring.late_slots[ring.slot_of(sequence)], np.int32)[:] = sequence
    ring.publish_late(sequence)
    print("ding", flush=True)  # the doorbell
"""


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.create("test", 1000, NUM_SLOTS, 1, 5000)
    yield ring
    os.close(ring.fd)


def never() -> None:
    raise AssertionError("what is there needs no sleep")


def test_it_has_memory_of_its_own(ring: Ring) -> None:
    parts = [*ring.slots, *ring.late_slots]
    assert [len(part) for part in parts] == [1000] * NUM_SLOTS + [5000] * NUM_SLOTS
    for number, part in enumerate(parts, 1):
        np.frombuffer(part, np.uint8)[:] = number
    for sequence in range(1, NUM_SLOTS + 1):  # numbers are not overwritten by contents
        assert not ring.is_published(sequence)
        assert not ring.is_late_published(sequence)
    for number, part in enumerate(parts, 1):
        assert set(bytes(part)) == {number}
    starts = [np.frombuffer(part, np.uint8).__array_interface__["data"][0] for part in parts]
    assert all(start % 4096 == 0 for start in starts), "a device copies from whole pages"


def test_its_number_is_its_own(ring: Ring) -> None:
    ring.publish(1)
    assert ring.is_published(1)
    assert not ring.is_late_published(1)
    ring.publish_late(2)  # it may be there before its slot
    assert ring.is_late_published(2)
    assert not ring.is_published(2)
    ring.publish_late(1)
    assert ring.is_late_published(1)


def test_a_slots_earlier_late_part_is_not_a_later_ones(ring: Ring) -> None:
    """Steps without one are skipped: the number that is left there is that of a step long gone."""
    ring.publish(1)
    ring.publish_late(1)
    ring.release(0, 1)
    reused = 1 + NUM_SLOTS
    assert ring.slot_of(reused) == ring.slot_of(1)
    assert ring.is_free(reused)
    ring.publish(reused)
    assert not ring.is_late_published(reused)
    ring.publish_late(reused)
    assert ring.is_late_published(reused)
    assert not ring.is_late_published(1)


def test_waiting_sleeps_until_it_is_there(ring: Ring) -> None:
    sleeps = []

    def sleep() -> None:
        sleeps.append(ring.is_published(1))
        if len(sleeps) == 3:
            ring.publish(1)

    ring.wait(1, sleep)
    assert sleeps == [False] * 3  # bells for other things wake too
    ring.wait(1, never)


def test_a_sleep_that_ends_the_wait(ring: Ring) -> None:
    def sleep() -> None:
        raise EOFError

    with pytest.raises(EOFError):
        ring.wait(1, sleep)


def test_another_process_writes_it(ring: Ring) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(ring.fd)],
        pass_fds=[ring.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    doorbell = writer.stdout
    for sequence in (1, 2, 5, 6, 10):
        ring.release(0, sequence - 1)
        ring.publish(sequence)
        writer.stdin.write(f"{sequence}\n")
        writer.stdin.flush()
        while not ring.is_late_published(sequence):
            assert doorbell.readline()
        late = np.frombuffer(ring.late_slots[ring.slot_of(sequence)], np.int32)
        assert (late == sequence).all()
    writer.communicate()
    assert writer.returncode == 0


def test_without_masks_it_takes_no_memory() -> None:
    assert PLAIN.num_mask_words == 0
    assert late_layout(PLAIN).num_bytes == 0
    without, with_room = (plan_layout(shape) for shape in (PLAIN, MASKED))
    assert with_room.num_bytes == without.num_bytes + 64
    assert {name: with_room.offsets[name] for name in without.offsets} == without.offsets
    assert Ring.total_bytes(1000, NUM_SLOTS, 1, 0) == Ring.total_bytes(1000, NUM_SLOTS)
    ring = Ring.create("test", without.num_bytes, NUM_SLOTS)
    assert [len(late) for late in ring.late_slots] == [0] * NUM_SLOTS
    os.close(ring.fd)


def test_both_sides_have_to_agree_on_its_size(ring: Ring) -> None:
    with pytest.raises(ValueError, match="agreed"):
        Ring(ring.fd, 1000, NUM_SLOTS)


def test_masks_of_a_plan_cross_the_ring() -> None:
    plans, late = plan_layout(MASKED), late_layout(MASKED)
    ring = Ring.create("test", plans.num_bytes, NUM_SLOTS, 1, late.num_bytes)
    theirs = Ring(ring.fd, plans.num_bytes, NUM_SLOTS, 1, late.num_bytes)
    plan = StepPlan.over(plans, ring.slots[0])
    plan.header[NUM_MASKS] = 2  # the third and the first scheduled row have a grammar
    plan.mask_rows[:2] = (2, 0)
    ring.publish(1)
    allowed = np.random.default_rng().random((2, VOCAB_SIZE)) < 0.5
    masks = LateMasks.over(late, ring.late_slots[0]).masks
    assert masks.shape == (5, NUM_MASK_WORDS)
    padded = np.zeros((2, 32 * NUM_MASK_WORDS), bool)
    padded[:, :VOCAB_SIZE] = allowed
    masks[:2] = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    LateMasks.over(late, ring.late_slots[0]).sequences[:2] = 1
    ring.publish_late(1)

    theirs.wait(1, never)
    plan = StepPlan.over(plans, theirs.slots[0])
    assert plan.num_masks == 2
    assert plan.mask_rows[: plan.num_masks].tolist() == [2, 0]
    assert theirs.is_late_published(1)
    part = LateMasks.over(late, theirs.late_slots[0])
    assert part.sequences.tolist() == [1, 1, 0, 0, 0]
    received = part.masks.view(np.uint32)
    tokens = np.arange(VOCAB_SIZE)
    assert ((received[:2, tokens // 32] >> (tokens % 32).astype(np.uint32) & 1) == allowed).all()
    os.close(ring.fd)


def test_a_plan_says_that_it_has_none() -> None:
    """Also over a slot whose last plan had one."""
    layout = plan_layout(PLAIN)
    plan = StepPlan.over(layout, bytearray(layout.num_bytes))
    plan.header[:] = 9
    writer = PlanWriter(plan)
    request = Request(
        request_id="r",
        client=b"",
        handle=0,
        prompt_token_ids=[1],
        sampling=SamplingParams(),
        max_total_tokens=10,
        arrival_time=0.0,
        arrival_number=0,
    )
    table = RowTable(num_rows=1, max_model_len=10, num_penalty_rows=0)
    request.block_tables = [[]]
    row = table.take(request, num_computed=0)
    writer.start_row(request, 0, ())
    assert writer.finish(1, table, np.array([row], np.int32), np.ones(1, np.int32)).tolist() == [1]
    assert plan.num_masks == 0
