"""Prefix reuse: what is shared, what never is, and in which order cached blocks go."""

import numpy as np

from engine_core.ipc.sampling_params import SamplingParams
from engine_core.kv_cache_manager import KVCacheManager
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
    manager.append(request, manager.num_blocks_for(len(request.tokens)) - len(hits))
    manager.register_full(request, request.tokens)
    return len(hits) * BLOCK


def test_full_blocks_are_shared_and_the_last_token_is_always_computed() -> None:
    manager = KVCacheManager(20, BLOCK)
    prompt = list(range(12))
    first, second = make_request(prompt), make_request(prompt)
    assert serve(manager, first) == 0
    assert serve(manager, second) == 8  # not 12: the last token's logits are needed
    assert first.block_ids[:2] == second.block_ids[:2]
    assert first.block_ids[2] != second.block_ids[2]
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
    assert len(manager.find_prefix(again, again.tokens)) == 2


def test_switched_off_nothing_is_found() -> None:
    manager = KVCacheManager(20, BLOCK, enable_prefix_caching=False)
    for _ in range(2):
        request = make_request(list(range(12)))
        assert serve(manager, request) == 0
    assert np.array_equal(request.block_hashes, [])
