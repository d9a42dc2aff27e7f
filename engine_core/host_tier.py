"""The second tier of the KV cache: which evicted blocks lie in which slot of the workers' host memory.

The engine core decides, the workers copy: a plan names the blocks that its step stores and loads, as pairs of block and
slot. A worker begins the stores, then the loads, and computes when both are done. That order is all that correctness
takes: a block is stored only when nobody owns it (all steps that wrote to it were collected), and before the step that
evicts it writes to it; a block that is loaded can be used by the very step that loads it. Nothing comes back from the
workers but the number of slots that they have ready. A slot that a step names keeps its contents until that step is
collected.

Nothing is lost by giving up: a store for which there is no room now is left out, the tier being a cache. The index
knows digests and slots, not tokens or tables, and not what kind of memory a slot is in.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import numpy as np

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.step import StepShape

LOAD_BYTES_BESIDE_OTHERS = 256 * 2**20
"""Most bytes that a step loads while it also runs other requests: some 5 ms over PCIe 5, about a decode step of an 8B
model, during which the copies run. A longer prefix comes back over several steps, so that nobody waits for it."""
_NO_PAIRS = np.empty((0, 2), np.int32)


class HostTier:
    """Slots 0 .. `num_slots` - 1, the least recently used given up first. A slot is free, or holds one digest."""

    def __init__(self, num_slots: int, max_stores: int, max_loads: int, max_loads_beside_others: int) -> None:
        """`max_stores` and `max_loads`: what a plan holds; a step that runs other requests loads
        `max_loads_beside_others` at most."""
        assert 0 < max_loads_beside_others <= max_loads
        self.num_slots = num_slots
        self.num_stored = 0
        self.num_loaded = 0
        self._max_stores = max_stores
        self._max_loads = max_loads
        self._max_loads_beside_others = max_loads_beside_others
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self.num_ready = 0
        """Slots that the workers have so far."""
        self._free: list[int] = []
        self._nameless: set[int] = set()  # forgotten while a step named them
        self._pins = array("i", bytes(4 * num_slots))  # steps not collected yet, or not dispatched, that name the slot
        self._stores: dict[int, int] = {}  # slot -> block, of the plan that is being made
        self._loads: dict[int, int] = {}  # block -> slot, of the same
        self._inflight: deque[tuple[int, list[int]]] = deque()  # step, slots that it names

    def __len__(self) -> int:
        """Blocks that can be found."""
        return len(self._slot_of)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slot_of

    def num_loads_left(self, runs_others: bool) -> int:
        """How many blocks the plan that is being made may still load."""
        most = self._max_loads_beside_others if runs_others else self._max_loads
        return max(0, most - len(self._loads))

    def evicted(self, block: int, digest: bytes) -> None:
        """A cached block has just been given up: its contents go to the host with the plan that is being made."""
        if digest in self._slot_of:
            self._slot_of.move_to_end(digest)
            return
        slot = self._take_slot() if len(self._stores) < self._max_stores else None
        if slot is not None:
            self._slot_of[digest] = slot
            self._stores[slot] = block
            self._pins[slot] += 1

    def hold(self, digests: Sequence[bytes]) -> list[int]:
        """The slots of these digests, which are all there, in the order of their chains; `load` must follow. No
        eviction can take them from now on."""
        assert len(digests) <= self._max_loads - len(self._loads)
        slots = [self._slot_of[digest] for digest in digests]
        for digest in reversed(digests):  # the ends of chains are given up before what leads to them
            self._slot_of.move_to_end(digest)
        for slot in slots:
            self._pins[slot] += 1
        return slots

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Slots that are held go to these fresh blocks with the plan that is being made."""
        self._loads.update(zip(blocks, slots, strict=True))

    def dispatch(self, step_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The step is planned: its stores and loads, each int32 [count, 2] of (block, slot)."""
        if not self._stores and not self._loads:
            return _NO_PAIRS, _NO_PAIRS
        self._inflight.append((step_id, [*self._stores, *self._loads.values()]))
        self.num_stored += len(self._stores)
        self.num_loaded += len(self._loads)
        stores, loads = _pairs((block, slot) for slot, block in self._stores.items()), _pairs(self._loads.items())
        self._stores, self._loads = {}, {}
        return stores, loads

    def collect(self, step_id: int, num_ready: int) -> None:
        """The step's result is there, and says that the workers have `num_ready` slots: pinning memory takes time."""
        while self._inflight and self._inflight[0][0] <= step_id:
            for slot in self._inflight.popleft()[1]:
                self._pins[slot] -= 1
                if slot in self._nameless and not self._pins[slot]:
                    self._nameless.remove(slot)
                    self._free.append(slot)
        if num_ready > self.num_ready:
            self._free += range(self.num_ready, num_ready)
            self.num_ready = num_ready

    def forget_all(self) -> None:
        """Nothing can be found any more. Slots that steps name are free once these are collected."""
        for slot in self._slot_of.values():
            if self._pins[slot]:
                self._nameless.add(slot)
            else:
                self._free.append(slot)
        self._slot_of.clear()

    def _take_slot(self) -> int | None:
        """A free slot, else the least recently used one; None where that is still named by a step. Free ones go from
        the last to the first, as the blocks of a chain do, so that blocks and slots form runs that are copied at once.
        """
        if self._free:
            return self._free.pop()
        for digest, slot in self._slot_of.items():
            if self._pins[slot]:
                break  # the others were named later still
            del self._slot_of[digest]
            return slot
        return None

    def check_integrity(self) -> None:
        """Asserts what must hold between any two calls; O(num_slots), for tests and when idle."""
        used = [*self._slot_of.values(), *self._nameless]
        assert sorted([*used, *self._free]) == list(range(self.num_ready))
        named = [*self._stores, *self._loads.values(), *(slot for _, slots in self._inflight for slot in slots)]
        pins = np.bincount(named, minlength=self.num_slots) if named else np.zeros(self.num_slots)
        assert pins.tolist() == list(self._pins)
        assert set(named) <= set(used)


def make_host_tier(config: EngineConfig) -> HostTier | None:
    """The tier that the configuration asks for; None where it asks for none."""
    cache, shape = config.cache, StepShape(**config.step_capacities())
    if not cache.num_host_blocks:
        return None
    beside_others = LOAD_BYTES_BESIDE_OTHERS // config.kv_layout().block_bytes
    return HostTier(
        cache.num_host_blocks, shape.max_stores, shape.max_loads, min(max(1, beside_others), shape.max_loads)
    )


def _pairs(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.array(list(pairs), np.int32).reshape(-1, 2)
