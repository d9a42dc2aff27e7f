"""Blocks that go to host memory and come back: copies, and the runs and pieces of pinned memory."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_core.config.errors import ConfigError
from engine_core.ipc.step import NUM_LOADS, NUM_STORES, StepPlan, StepShape, plan_layout
from gpu_workers.running import host_blocks
from gpu_workers.running.host_blocks import HostBlocks
from gpu_workers.running.inline_queue import InlineQueue
from gpu_workers.running.queue import Queue
from gpu_workers.running.stream_queue import StreamQueue
from tests.gpu_workers.plan_driver import Driver, Request
from tests.gpu_workers.ring_runner import ON_BOTH_DEVICES, RingRunner
from tests.gpu_workers.small_models import engine_config, save_model
from tests.kernels.device import DEVICE

NUM_BLOCKS, NUM_SLOTS, BLOCK_SHAPE = 40, 23, (2, 2, 3)
SLOTS_PER_PIECE = 4
SHAPE = StepShape(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=160, block_size=4, num_host_blocks=NUM_SLOTS)
Pairs = list[tuple[int, int]]


def make_queue() -> Queue:
    return InlineQueue() if DEVICE == "cpu" else StreamQueue(torch.device("cuda", 0))


def make_plan(stores: Pairs, loads: Pairs) -> StepPlan:
    layout = plan_layout(SHAPE)
    plan = StepPlan.over(layout, bytearray(layout.num_bytes))
    plan.stores[: len(stores)] = np.array(stores).reshape(-1, 2)
    plan.loads[: len(loads)] = np.array(loads).reshape(-1, 2)
    plan.header[NUM_STORES], plan.header[NUM_LOADS] = len(stores), len(loads)
    return plan


def started(cache: torch.Tensor) -> tuple[HostBlocks, Callable[[], None]]:
    queue = make_queue()
    block_bytes = cache[0].numel() * cache.element_size()
    blocks = HostBlocks(queue, cache, NUM_SLOTS, piece_bytes=SLOTS_PER_PIECE * block_bytes + 1)
    assert blocks.num_ready == SLOTS_PER_PIECE  # the first piece is there at once
    blocks.start()
    blocks._thread.join()
    return blocks, queue.synchronize


def test_every_block_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random pairs, runs of neighbours and pieces' ends among them, against dictionaries. Blocks are loaded whose old
    contents the same step stores, and in some steps from slots that it has just stored."""
    monkeypatch.setattr(host_blocks, "PART_BYTES", 3 * 48)
    cache = torch.randn(NUM_BLOCKS, *BLOCK_SHAPE, device=DEVICE)
    blocks, synchronize = started(cache)
    assert blocks.num_ready == NUM_SLOTS
    synchronize()
    device, host = dict(enumerate(cache.cpu().clone())), dict.fromkeys(range(NUM_SLOTS), torch.zeros(BLOCK_SHAPE))
    rng = random.Random(0)
    for turn in range(30):
        first, slot = rng.randrange(NUM_BLOCKS - 15), rng.randrange(NUM_SLOTS - 15)
        stores = [(first + i, slot + i) for i in range(15)]
        if turn % 3:
            stores = list(zip(rng.sample(range(NUM_BLOCKS), 12), rng.sample(range(NUM_SLOTS), 12), strict=True))
        rng.shuffle(stores)
        targets = rng.sample([block for block, _ in stores], 5) + rng.sample(range(NUM_BLOCKS), turn % 5)
        sources = set(range(NUM_SLOTS)) - ({slot for _, slot in stores} if turn % 4 else set())
        loads = list(zip(dict.fromkeys(targets), rng.sample(sorted(sources), len(sources)), strict=False))
        blocks.copy(make_plan(stores, loads))
        host |= {slot: device[block] for block, slot in stores}
        device |= {block: host[slot] for block, slot in loads}
        synchronize()
        assert torch.equal(cache.cpu(), torch.stack([device[block] for block in range(NUM_BLOCKS)]))
    blocks.close()
    assert blocks.num_ready == 0


def test_neighbours_are_one_copy() -> None:
    queue, cache = make_queue(), torch.zeros(NUM_BLOCKS, *BLOCK_SHAPE, device=DEVICE)
    blocks = HostBlocks(queue, cache, NUM_SLOTS, piece_bytes=SLOTS_PER_PIECE * 48)
    blocks.start()
    blocks._thread.join()
    runs = blocks._runs(np.array([(5, 3), (6, 4), (7, 5), (8, 6), (9, 7), (12, 0), (13, 2)], np.int32))
    assert [len(cached) for cached, _ in runs] == [1, 4, 1, 1]  # slots 3 and 4 lie in two pieces
    blocks.close()


def test_a_driver_that_refuses_later_leaves_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    class Reluctant(InlineQueue):
        num_pinned = 0

        def pin(self, memory: object) -> None:
            self.num_pinned += 1
            if self.num_pinned == limit:
                raise ConfigError("The driver refuses.")

    cache, limit = torch.zeros(NUM_BLOCKS, *BLOCK_SHAPE), 3
    blocks = HostBlocks(Reluctant(), cache, NUM_SLOTS, piece_bytes=SLOTS_PER_PIECE * 48)
    blocks.start()
    blocks._thread.join()
    assert blocks.num_ready == 2 * SLOTS_PER_PIECE
    assert "stays at 8 of 23 blocks: The driver refuses." in caplog.text
    limit = 1
    with pytest.raises(ConfigError, match="refuses"):
        HostBlocks(Reluctant(), cache, NUM_SLOTS)


@pytest.mark.parametrize("name", ON_BOTH_DEVICES)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_prefix_from_the_host_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    """The step that loads a prefix also uses it, and writes to the blocks that it has just stored."""
    save_model(tmp_path)
    config = engine_config(tmp_path, device=name, num_blocks=30, num_host_blocks=12)
    runner = RingRunner(config)
    driver = Driver(config, runner)
    rng = random.Random(1)
    prompt = [rng.randrange(1, 200) for _ in range(22)]
    first = Request(prompt, 4, 0)
    while len(first.output) < 4:
        driver.step([first])
    assert driver.result.num_host_slots == 12
    kept, fresh = first.blocks[:5], [[block] for block in driver._free[:5]]  # 20 tokens of the 22
    driver._free = driver._free[5:]
    again = Request(prompt, 4, 1, num_computed=20, blocks=fresh)
    other = Request([rng.randrange(1, 200) for _ in range(20)], 1, 2, blocks=kept)
    stores, loads = ([(block, slot) for slot, (block,) in enumerate(blocks)] for blocks in (kept, fresh))
    driver.copies = stores, loads
    driver.step([again, other])
    assert other.output
    while len(again.output) < 4:
        driver.step([again])
    assert again.output == first.output
    runner.close()
