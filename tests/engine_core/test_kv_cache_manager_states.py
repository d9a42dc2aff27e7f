"""The cache manager as a hypothesis state machine against a model that remembers what each block holds."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from tests.engine_core.state_machines import machine_settings

Contents = tuple[int, str | None, tuple[int, ...]]
"""What a full block's keys and values depend on: the layer group, the salt, and all tokens up to its end."""


class KVCacheManagerMachine(RuleBasedStateMachine):
    """Requests start with what is found, grow by tokens and end; `contents` is what was computed into each block."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(4, 20),
        caching=st.booleans(),
        groups=st.sampled_from([(1, 0), (1, 0), (0, 1), (1, 1), (1, 2)]),
        window=st.integers(2, 8),
    )
    def build(self, block_size: int, num_blocks: int, caching: bool, groups: tuple[int, int], window: int) -> None:
        windows = (0,) * groups[0] + (window,) * groups[1]
        self.manager = KVCacheManager(num_blocks * len(windows), block_size, caching, windows=windows)
        self.caching = caching
        self.live: list[tuple[Request, list[int]]] = []
        self.contents: dict[int, Contents] = {}
        self.num_started = 0

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        salt=st.sampled_from([None, "a"]),
        max_blocks=st.integers(0, 8),
        num_samples=st.sampled_from([1, 1, 3]),
    )
    def start(self, tokens: list[int], salt: str | None, max_blocks: int, num_samples: int) -> None:
        for _ in range(num_samples):
            self._start(tokens, salt, max_blocks)

    def _start(self, tokens: list[int], salt: str | None, max_blocks: int) -> None:
        manager, size = self.manager, self.manager.block_size
        self.num_started += 1
        request = Request(
            request_id=str(self.num_started),
            client=b"",
            handle=self.num_started,
            prompt_token_ids=tokens,
            sampling=SamplingParams(),
            max_total_tokens=1000,
            arrival_time=0.0,
            arrival_number=self.num_started,
            cache_salt=salt,
        )
        before = manager.num_hashed_blocks
        is_complete = manager.hash_prefix(request, max_blocks)
        assert manager.num_hashed_blocks - before <= max(1, max_blocks)
        assert is_complete or max_blocks < len(tokens) // size
        hit = manager.find_prefix(request, request.tokens)
        assert hit.num_blocks <= (len(tokens) - 1) // size
        assert self.caching or not hit.num_blocks
        missing = manager.num_blocks_for(len(tokens)) - hit.num_blocks
        if missing * manager.num_groups > manager.num_available_beside(hit):
            return
        manager.start_table(request, hit, len(tokens))
        assert len({len(table) for table in request.block_tables}) == 1
        self._check_contents(request, tokens)
        first_seen = max(0, hit.num_blocks * size - max(manager.windows) + 1)
        assert request.num_behind * size <= first_seen, "a block that is seen was not found"
        self.live.append((request, list(tokens)))
        self._compute(request, tokens, hit.num_blocks * size, missing)

    def _check_contents(self, request: Request, tokens: list[int]) -> None:
        for group in range(self.manager.num_groups):
            first, blocks = self.manager.held_entries(request, group)
            for index, block in enumerate(blocks, first):
                expected = (group, request.cache_salt, tuple(tokens[: (index + 1) * self.manager.block_size]))
                assert self.contents[block] == expected, "a request's block has other contents"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        request, known = data.draw(st.sampled_from(self.live))
        missing = self.manager.num_blocks_for(len(known) + len(tokens)) - len(request.block_tables[0])
        if missing * self.manager.num_groups > self.manager.pool.num_available:
            return
        start = len(known)
        known += tokens
        self._compute(request, known, start, missing)

    def _compute(self, request: Request, tokens: list[int], start: int, num_new_blocks: int) -> None:
        """New blocks, their contents, and their registration; no block that is written has another owner."""
        manager, size = self.manager, self.manager.block_size
        manager.append([request], [num_new_blocks])
        for index in range(start // size, manager.num_blocks_for(len(tokens))):
            for group, table in enumerate(request.block_tables):
                assert manager.pool.reference_count(table[index]) == 1, "a block with two owners is written"
                self.contents[table[index]] = (group, request.cache_salt, tuple(tokens[: (index + 1) * size]))
        manager.register_full([request], [np.array(tokens, np.int32)])

    @precondition(lambda self: self.live and self.manager.has_windows)
    @rule(data=st.data())
    def pass_window(self, data: st.DataObject) -> None:
        """What all tokens to come have left behind is given back."""
        request, known = data.draw(st.sampled_from(self.live))
        behind = int(self.manager.count_behind(np.array(len(known))))
        self.manager.release_behind([request], [max(behind, request.num_behind)])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request, _ = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.manager.release(request)
        assert request.block_tables == []

    @rule()
    def forget_all(self) -> None:
        self.manager.forget_all()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager, pool = self.manager, self.manager.pool
        pool.check_integrity()
        owners = [0] * pool.num_blocks
        for request, tokens in self.live:
            needed = manager.num_blocks_for(len(tokens))
            assert all(len(table) == needed for table in request.block_tables), "a block is reserved without need"
            self._check_contents(request, tokens)
            for group in range(manager.num_groups):
                for block in manager.held_entries(request, group)[1]:
                    owners[block] += 1
        assert [pool.reference_count(block) for block in range(pool.num_blocks)] == owners
        assert pool.num_owned == sum(1 for count in owners if count)
        assert pool.num_owned + pool.num_available == pool.num_blocks
        assert pool.num_cached <= pool.num_available
        assert manager.num_hit_tokens <= manager.num_query_tokens

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            for request, _ in self.live:
                self.manager.release(request)
            assert self.manager.pool.num_available == self.manager.pool.num_blocks


TestKVCacheManager = KVCacheManagerMachine.TestCase
TestKVCacheManager.settings = machine_settings()
