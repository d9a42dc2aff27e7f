"""Prefix reuse: what is shared, what never is, and in which order cached blocks go."""

import numpy as np
import pytest

from engine_core.config.layer_groups import BlockDemand
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import NO_BLOCK
from engine_core.request import Request

BLOCK = 4


def make_request(tokens: list[int], cache_salt: str | None = None, adapter: str | None = None) -> Request:
    return Request(
        request_id="r",
        client=b"",
        handle=0,
        prompt_token_ids=tokens,
        sampling=SamplingParams(),
        max_total_tokens=1000,
        arrival_time=0.0,
        arrival_number=0,
        cache_salt=cache_salt,
        adapter=adapter,
    )


def serve(manager: KVCacheManager, request: Request) -> int:
    """Computes a whole prompt; returns how many tokens were found."""
    hits = manager.find_prefix(request, request.tokens)
    manager.start_table(request, hits, len(request.tokens))
    manager.append([request], [manager.num_blocks_for(len(request.tokens)) - hits.num_blocks])
    manager.register_full([request], [request.tokens])
    return hits.num_blocks * BLOCK


def test_full_blocks_are_shared_and_the_last_token_is_always_computed() -> None:
    manager = KVCacheManager(20, BLOCK)
    prompt = list(range(12))
    first, second = make_request(prompt), make_request(prompt)
    assert serve(manager, first) == 0
    assert serve(manager, second) == 8  # not 12: the last token's logits are needed
    assert first.block_tables[0][:2] == second.block_tables[0][:2]
    assert first.block_tables[0][2] != second.block_tables[0][2]
    assert manager.pool.num_owned == 4
    longer = make_request([*prompt, 99])
    assert serve(manager, longer) == 12
    manager.release(first)
    manager.release(second)
    manager.release(longer)
    assert manager.pool.num_owned == 0
    assert manager.num_hit_tokens == 20
    assert manager.num_query_tokens == 37


def test_a_chain_breaks_where_tokens_differ() -> None:
    manager = KVCacheManager(20, BLOCK)
    serve(manager, make_request([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert serve(manager, make_request([1, 2, 3, 4, 0, 6, 7, 8, 9])) == 4
    assert serve(manager, make_request([0, 2, 3, 4, 5, 6, 7, 8, 9])) == 0


def test_tenants_and_adapters_share_nothing() -> None:
    manager = KVCacheManager(40, BLOCK)
    prompt = list(range(9))
    for salt, adapter in [(None, None), ("a", None), (None, "a"), ("", None), ("a", "a"), ("\0", None)]:
        assert serve(manager, make_request(prompt, salt, adapter)) == 0, (salt, adapter)
        assert serve(manager, make_request(prompt, salt, adapter)) == 8


def test_hashes_depend_on_the_key() -> None:
    digests = []
    for key in (b"1" * 32, b"2" * 32, b"1" * 32):
        request = make_request(list(range(9)))
        KVCacheManager(4, BLOCK, hash_key=key).find_prefix(request, request.tokens)
        digests.append(request.block_hashes)
    assert digests[0] == digests[2] != digests[1]


def test_the_end_of_a_chain_is_evicted_first() -> None:
    manager = KVCacheManager(4, BLOCK)
    request = make_request(list(range(16)))
    serve(manager, request)
    manager.release(request)
    other = make_request([9] * 8)
    serve(manager, other)  # takes two blocks: the last ones of the chain
    assert manager.pool.num_evictions == 2
    again = make_request(list(range(16)))
    assert manager.find_prefix(again, again.tokens).num_blocks == 2


def test_the_ends_of_chains_go_first_in_all_groups() -> None:
    """A prefix needs its blocks in every group: half of the blocks hold half of it, and not one group's whole."""
    manager = KVCacheManager(40, BLOCK, windows=(0, 0))
    prompt = list(range(20 * BLOCK + 1))
    request = make_request(prompt[:-1])
    serve(manager, request)
    manager.release(request)
    assert manager.find_prefix(make_request(prompt), np.array(prompt, np.int32)).num_blocks == 20
    manager.pool.allocate(20)
    assert manager.find_prefix(make_request(prompt), np.array(prompt, np.int32)).num_blocks == 10


def test_switched_off_nothing_is_found() -> None:
    manager = KVCacheManager(20, BLOCK, enable_prefix_caching=False)
    for _ in range(2):
        request = make_request(list(range(12)))
        assert serve(manager, request) == 0
    assert np.array_equal(request.block_hashes, [])


def test_groups_keep_blocks_of_their_own() -> None:
    manager = KVCacheManager(40, BLOCK, windows=(0, 6, 6))
    prompt = list(range(13))
    first, second = make_request(prompt), make_request(prompt)
    assert serve(manager, first) == 0
    assert manager.num_held(first) == manager.pool.num_owned == 3 * 4
    assert serve(manager, second) == 12
    # Token 12 sees 7 to 12: of the 3 blocks that were found, a window takes the last 2.
    assert second.num_behind == 1
    assert [table[0] for table in second.block_tables] == [first.block_tables[0][0], NO_BLOCK, NO_BLOCK]
    for mine, others in zip(second.block_tables, first.block_tables, strict=True):
        assert mine[1:3] == others[1:3]
    assert manager.num_held(second) == 4 + 2 * 3
    assert manager.pool.num_owned == 3 * 4 + 3
    manager.release(first)
    manager.release(second)
    assert manager.pool.num_owned == 0
    manager.pool.check_integrity()


@pytest.mark.parametrize("windows", [(0, 6), (6,)])
def test_a_prefix_needs_only_what_its_next_token_sees(windows: tuple[int, ...]) -> None:
    """Blocks behind the window may be lost; one within it shortens the prefix to where all that is seen is there."""
    num_blocks = 7 * len(windows)
    manager = KVCacheManager(num_blocks, BLOCK, windows=windows)
    prompt = list(range(25))
    first = make_request(prompt)
    serve(manager, first)
    manager.release_behind([first], [4])
    assert manager.pool.num_available == 4
    other = make_request([99] * (8 // len(windows)))
    serve(manager, other)  # takes two of the four blocks, those of tokens 8 to 15
    assert manager.pool.num_evictions == 2
    manager.pool.check_integrity()
    hits = manager.find_prefix(make_request(prompt), np.array(prompt, np.int32))
    assert hits.num_blocks == 6  # token 24 sees 19 to 24
    assert hits.tables[-1] == [NO_BLOCK] * 4 + first.block_tables[-1][4:6]
    hits = manager.find_prefix(make_request(prompt), np.array(prompt[:21], np.int32))
    assert (hits.num_blocks, hits.num_behind) == (2, 0)  # token 20 would see 15 to 20, token 12 7 to 12
    manager.release(first)
    manager.release(other)
    assert manager.pool.num_available == num_blocks


def test_what_a_request_takes_with_windows() -> None:
    demand = BlockDemand.of((0, 6, 6), BLOCK, max_chunk=8)
    assert demand.peak(4) == 3
    # 5 tokens before the chunk's first and 8 of it: 13 tokens touch at most 4 blocks.
    assert demand.peak(100) == 25 + 2 * 4
    assert demand.at_end(100) == 25 + 2 * 3
    assert demand.longest(demand.peak(100), 1000) == 100
    assert demand.longest(demand.peak(100) - 1, 1000) == 96
    assert demand.longest(3, 1000) == 4
    assert demand.longest(2, 1000) == 0
    assert BlockDemand.of((6,), BLOCK, max_chunk=8).longest(4, 10**6) == 10**6
    assert BlockDemand.of((0,), BLOCK, max_chunk=8).longest(10, 1000) == 40
