"""The second tier of the KV cache in a worker whose cache lies in the machine's memory anyway: a second such tensor.

Saves no copy and hides none; it is there so that the tier works, and is tested, on every machine.
"""

import numpy as np
import torch

from engine_core.ipc.step import StepPlan


class HostBlocks:
    """Slots beside the blocks of `kv_cache` [num_blocks, ...]; `arena` [num_slots, ...] is alike."""

    def __init__(self, kv_cache: torch.Tensor, arena: torch.Tensor) -> None:
        assert kv_cache.shape[1:] == arena.shape[1:]
        self._cache = kv_cache.flatten(1)
        self._arena = arena.flatten(1)

    @property
    def num_ready(self) -> int:
        """Slots that plans may name from now on."""
        return len(self._arena)

    def copy(self, plan: StepPlan) -> None:
        """The copies that stand at the beginning of a step."""
        if plan.num_stores:
            blocks, slots = _columns(plan.stores[: plan.num_stores])
            self._arena.index_copy_(0, slots, self._cache[blocks])
        if plan.num_loads:
            blocks, slots = _columns(plan.loads[: plan.num_loads])
            self._cache.index_copy_(0, blocks, self._arena[slots])


def _columns(pairs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    blocks, slots = torch.from_numpy(pairs.T.astype(np.int64))
    return blocks, slots
