"""The publisher: results in order, and a failure that the launching thread hears of."""

import queue
import select

import pytest

from engine_core.ipc.step import (
    ENDED_NS,
    RESULT_NUM_SEQS,
    RESULT_STEP_ID,
    STARTED_NS,
    StepResult,
    StepShape,
    result_layout,
)
from gpu_workers.running.publisher import LaunchedStep, Publisher

SHAPE = StepShape(max_num_seqs=2, max_num_batched_tokens=4, max_model_len=8, block_size=4)


class Device:
    """Ends a step when the test says so."""

    runs_inline = False

    def __init__(self) -> None:
        self.ends: queue.Queue[tuple[int, int] | Exception] = queue.Queue()

    def wait(self, slot: int) -> tuple[int, int]:
        end = self.ends.get()
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def results() -> list[StepResult]:
    layout = result_layout(SHAPE)
    return [StepResult.over(layout, bytearray(layout.num_bytes)) for _ in range(2)]


def test_headers_are_written_before_the_step_is_finished(results: list[StepResult]) -> None:
    device = Device()
    finished: queue.Queue[tuple[int, list[int]]] = queue.Queue()
    names = (RESULT_STEP_ID, RESULT_NUM_SEQS, STARTED_NS, ENDED_NS)

    def on_finished(sequence: int) -> None:
        header = results[(sequence - 1) % 2].header
        finished.put((sequence, [int(header[name]) for name in names]))

    publisher = Publisher(device, results, on_finished)
    publisher.put(LaunchedStep(sequence=1, slot=0, step_id=7, num_seqs=2, num_host_slots=0))
    publisher.put(LaunchedStep(sequence=2, slot=1, step_id=8, num_seqs=1, num_host_slots=3))
    assert finished.empty()
    device.ends.put((100, 200))
    assert finished.get(timeout=60) == (1, [7, 2, 100, 200])
    device.ends.put((300, 400))
    assert finished.get(timeout=60) == (2, [8, 1, 300, 400])
    publisher.close()


def test_a_failure_wakes_whoever_polls_and_names_its_reason(results: list[StepResult]) -> None:
    device = Device()
    publisher = Publisher(device, results, lambda sequence: None)
    assert publisher.failure is None
    publisher.put(LaunchedStep(sequence=1, slot=0, step_id=1, num_seqs=1, num_host_slots=3))
    device.ends.put(RuntimeError("the device is gone"))
    readable, _, _ = select.select([publisher.failure_fd], [], [], 60)
    assert readable
    assert str(publisher.failure) == "the device is gone"
    publisher.close()
