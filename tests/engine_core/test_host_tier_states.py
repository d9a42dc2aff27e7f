"""The host tier's index with the cache manager as a hypothesis state machine; memory on both sides is simulated.

A step's copies take place when it is *collected*, the latest moment that the rules allow. What the step relied on is
asserted then: a slot or block that was used again too early shows as wrong contents.
"""

import os
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.host_tier import HostTier
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import NO_BLOCK, identity
from engine_core.request import Request

BLOCK = 2
MAX_TOKENS = 13
MAX_BLOCKS = MAX_TOKENS // BLOCK
PARTIAL = b"not full"


@dataclass
class Step:
    """A dispatched step that is not collected. `reads` and `writes` say which digest's contents a block has."""

    step_id: int
    stores: list[tuple[int, int]]
    loads: list[tuple[int, int]]
    reads: list[tuple[int, bytes]]
    writes: list[tuple[int, bytes]]


class HostTierMachine(RuleBasedStateMachine):
    """A request is served by one step, which computes what was not found; it ends some time after that is collected."""

    @initialize(
        num_blocks=st.integers(7, 14),
        num_slots=st.integers(1, 24),
        max_stores=st.integers(1, 8),
        windows=st.sampled_from([(0,), (0, 4), (4,), (0, 5, 5)]),
    )
    def build(self, num_blocks: int, num_slots: int, max_stores: int, windows: tuple[int, ...]) -> None:
        self.max_stores = max_stores
        self.max_loads = MAX_BLOCKS * len(windows)
        self.tier = HostTier(num_slots, max_stores, self.max_loads, 2)
        self.manager = KVCacheManager(num_blocks * len(windows), BLOCK, host=self.tier, windows=windows)
        self.device: dict[int, bytes] = {}
        self.host: dict[int, bytes] = {}
        self.steps: list[Step] = []
        self.running: list[tuple[int, Request]] = []  # the step that serves it
        self.last_step = self.last_collected = self.num_ready = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=MAX_TOKENS), runs_others=st.booleans())
    def serve(self, tokens: list[int], runs_others: bool) -> None:
        manager = self.manager
        request = Request(
            request_id="r",
            client=b"",
            handle=0,
            prompt_token_ids=tokens,
            sampling=SamplingParams(),
            max_total_tokens=100,
            arrival_time=0.0,
            arrival_number=0,
        )
        hit = manager.find_prefix(request, request.tokens)
        missing = manager.num_blocks_for(len(tokens)) - hit.num_blocks
        if manager.num_available_beside(hit) < missing * manager.num_groups + len(hit.on_host):
            return
        if hit.on_host:
            hit = manager.bring_back(request, hit, self.tier.num_loads_left(runs_others))
        reads = [
            (block, identity(request.block_hashes[index], group))
            for group, table in enumerate(hit.tables)
            for index, block in enumerate(table)
            if block != NO_BLOCK
        ]
        if hit.on_host:  # the others' step loads a part; the request comes again
            assert runs_others
            self._dispatch(reads, [])
            return
        manager.start_table(request, hit, len(tokens))
        manager.append([request], [missing])
        manager.register_full([request], [request.tokens])
        writes = [
            (block, identity(request.block_hashes[index], group) if index < len(tokens) // BLOCK else PARTIAL)
            for group, table in enumerate(request.block_tables)
            for index, block in enumerate(table)
            if index >= hit.num_blocks
        ]
        self._dispatch(reads, writes)
        self.running.append((self.last_step, request))

    def _dispatch(self, reads: list[tuple[int, bytes]], writes: list[tuple[int, bytes]]) -> None:
        self.last_step += 1
        stores, loads = ([(b, s) for b, s in pairs.tolist()] for pairs in self.tier.dispatch(self.last_step))
        assert len(stores) <= self.max_stores
        assert len(loads) <= self.max_loads
        in_flight = {slot for step in self.steps for _, slot in (*step.stores, *step.loads)}
        stored = {slot for _, slot in stores}
        assert len(stored) == len(stores), "two blocks go to one slot"
        assert not in_flight & stored, "a slot that a step in flight names is written again"
        assert len({block for block, _ in loads}) == len(loads), "two slots go to one block"
        assert all(slot < self.num_ready for _, slot in (*stores, *loads)), "a slot is named that is not there yet"
        self.steps.append(Step(self.last_step, stores, loads, reads, writes))

    @precondition(lambda self: self.steps)
    @rule(num_more_slots=st.integers(0, 5))
    def collect(self, num_more_slots: int) -> None:
        """The worker runs the oldest step, and has pinned some more memory."""
        step = self.steps.pop(0)
        for block, slot in step.stores:
            assert self.device[block] != PARTIAL
            self.host[slot] = self.device[block]
        for block, slot in step.loads:
            self.device[block] = self.host[slot]
        for block, digest in step.reads:
            assert self.device[block] == digest, "a prefix has other contents than it was found for"
        self.device.update(step.writes)
        self.last_collected = step.step_id
        self.num_ready = min(self.num_ready + num_more_slots, self.tier.num_slots)
        self.tier.collect(step.step_id, self.num_ready)

    @precondition(lambda self: any(step <= self.last_collected for step, _ in self.running))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Blocks come back only when no step in flight names them."""
        ended = data.draw(st.sampled_from([entry for entry in self.running if entry[0] <= self.last_collected]))
        self.running.remove(ended)
        self.manager.release(ended[1])

    @precondition(lambda self: self.manager.has_windows)
    @precondition(lambda self: any(step <= self.last_collected for step, _ in self.running))
    @rule(data=st.data())
    def pass_window(self, data: st.DataObject) -> None:
        """Tables with a window let go of what later tokens do not see."""
        _, request = data.draw(st.sampled_from([entry for entry in self.running if entry[0] <= self.last_collected]))
        behind = int(self.manager.count_behind(np.array(len(request.tokens))))
        self.manager.release_behind([request], [max(behind, request.num_behind)])

    @rule()
    def forget_all(self) -> None:
        self.manager.forget_all()
        assert len(self.tier) == self.manager.pool.num_findable == self.manager.forget_all() == 0

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "tier"):
            return
        self.tier.check_integrity()
        self.manager.pool.check_integrity()


TestHostTier = HostTierMachine.TestCase
TestHostTier.settings = settings(
    max_examples=int(os.environ.get("QUIRE_STATE_MACHINE_EXAMPLES", "100")), stateful_step_count=50
)
