"""The cache manager as a hypothesis state machine against a model that remembers what each block holds."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from tests.engine_core.state_machines import machine_settings

Contents = tuple[str | None, tuple[int, ...]]
"""What a full block's keys and values depend on: the salt, and all tokens up to its end."""


class KVCacheManagerMachine(RuleBasedStateMachine):
    """Requests start with what is found, grow by tokens and end; `contents` is what was computed into each block."""

    @initialize(block_size=st.sampled_from([1, 2, 4]), num_blocks=st.integers(4, 20), caching=st.booleans())
    def build(self, block_size: int, num_blocks: int, caching: bool) -> None:
        self.manager = KVCacheManager(num_blocks, block_size, caching)
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
        hits = manager.find_prefix(request, request.tokens)
        assert len(hits) <= (len(tokens) - 1) // size
        assert self.caching or not hits
        for index, block in enumerate(hits):
            assert self.contents[block] == (salt, tuple(tokens[: (index + 1) * size])), "a foreign block was found"
        missing = manager.num_blocks_for(len(tokens)) - len(hits)
        if missing > manager.num_available_beside(hits):
            return
        manager.start_table(request, hits, len(tokens))
        self.live.append((request, list(tokens)))
        self._compute(request, tokens, len(hits) * size, missing)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        request, known = data.draw(st.sampled_from(self.live))
        missing = self.manager.num_blocks_for(len(known) + len(tokens)) - len(request.block_ids)
        if missing > self.manager.pool.num_available:
            return
        start = len(known)
        known += tokens
        self._compute(request, known, start, missing)

    def _compute(self, request: Request, tokens: list[int], start: int, num_new_blocks: int) -> None:
        """New blocks, their contents, and their registration; no block that is written has another owner."""
        manager, size = self.manager, self.manager.block_size
        manager.append(request, num_new_blocks)
        for index in range(start // size, manager.num_blocks_for(len(tokens))):
            block = request.block_ids[index]
            assert manager.pool.reference_count(block) == 1, "a block with two owners is written"
            self.contents[block] = (request.cache_salt, tuple(tokens[: (index + 1) * size]))
        manager.register_full(request, np.array(tokens, np.int32))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request, _ = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.manager.release(request)
        assert request.block_ids == []

    @rule()
    def forget_all(self) -> None:
        self.manager.pool.forget_all()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager, pool = self.manager, self.manager.pool
        pool.check_integrity()
        owners = [0] * pool.num_blocks
        for request, tokens in self.live:
            assert len(request.block_ids) == manager.num_blocks_for(len(tokens)), "a block is reserved without need"
            for index, block in enumerate(request.block_ids):
                owners[block] += 1
                expected = (request.cache_salt, tuple(tokens[: (index + 1) * manager.block_size]))
                assert self.contents[block] == expected, "a request's block was overwritten"
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
