"""The prefix tree and the block events against the pool itself, over any order of prompts, ends and evictions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.request import Request
from tests.engine_core.test_kv_cache_manager import BLOCK, make_request, serve


def digests_of(kv: KVCacheManager) -> dict[bytes, int]:
    blocks = range(kv.pool.num_blocks)
    return {digest: block for block in blocks if (digest := kv.pool.digest_of(block)) is not None}


class Mirror:
    """What a subscriber knows."""

    def __init__(self, kv: KVCacheManager) -> None:
        self._events = kv.events
        kv.events.is_recording = True
        self.parents: dict[bytes, bytes] = {}

    def follow(self) -> None:
        for event in self._events.take():
            kind = type(event).__name__
            if kind == "BlocksStored":
                digests = [event.digests[start : start + 16] for start in range(0, len(event.digests), 16)]
                assert event.num_tokens == BLOCK
                assert not set(digests) & set(self.parents), "stored twice"
                self.parents.update(zip(digests, [event.parent, *digests], strict=False))
            elif kind == "BlocksRemoved":
                for start in range(0, len(event.digests), 16):
                    del self.parents[event.digests[start : start + 16]]
            else:
                self.parents.clear()


# Prompts over two tokens, so that many begin alike and equal blocks are filled by several requests at once.
PROMPTS = st.lists(st.sampled_from([[0] * BLOCK, [1] * BLOCK, [2]]), min_size=1, max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), PROMPTS),
        st.tuples(st.just("fill late"), PROMPTS),
        st.tuples(st.just("release"), st.integers(0, 7)),
        st.tuples(st.just("forget"), st.just(0)),
    ),
    max_size=40,
)


@given(num_blocks=st.integers(5, 12), steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_tree_and_events_agree_with_the_pool(num_blocks: int, steps: list[tuple[str, object]]) -> None:
    kv = KVCacheManager(num_blocks, BLOCK, hash_key=b"k" * 32)
    mirror = Mirror(kv)
    running: list[Request] = []
    late: list[Request] = []
    for now, (kind, value) in enumerate(steps):
        kv.now = float(now)
        if kind in ("serve", "fill late"):
            assert isinstance(value, list)
            request = make_request([token for part in value for token in part])
            if kv.num_blocks_for(len(request.tokens)) > kv.pool.num_available:
                continue
            if kind == "serve":
                serve(kv, request)
            else:  # looked up now, filled after others that may fill the same
                kv.start_table(request, kv.find_prefix(request, request.tokens), len(request.tokens))
                missing = kv.num_blocks_for(len(request.tokens)) - len(request.block_ids)
                kv.append(request, missing)
                late.append(request)
            running.append(request)
        elif kind == "release" and running:
            assert isinstance(value, int)
            request = running.pop(value % len(running))
            if request in late:
                late.remove(request)
                kv.register_full(request, request.tokens)
            kv.release(request)
        elif kind == "forget":
            kv.pool.forget_all()
            for request in running:  # their workers are gone as well
                kv.release(request)
            running, late = [], []
        mirror.follow()
        kv.pool.check_integrity()
        found = digests_of(kv)
        kv.tree.check_integrity(found)
        assert mirror.parents == {digest: kv.tree.parent(block) for digest, block in found.items()}


def test_the_longest_chains_and_what_they_share() -> None:
    kv = KVCacheManager(40, BLOCK)
    kv.now = 1.0
    shared = list(range(8 * BLOCK))
    first, second = make_request([*shared, *[1] * 3 * BLOCK, 0]), make_request([*shared, *[2] * BLOCK, 0])
    for request in (first, second, make_request([3] * 2 * BLOCK)):
        serve(kv, request)
    assert [kv.tree.length(block) for block in kv.tree.longest_chains(10)] == [11, 9, 2]
    assert kv.tree.longest_chains(1) == [first.block_ids[10]]
    assert kv.tree.longest_shared_prefixes(10) == [first.block_ids[7]] == [second.block_ids[7]]
    assert kv.tree.num_continuations(second.block_hashes[7]) == 2
    assert kv.pool.reference_count(first.block_ids[7]) == 2
    kv.now = 5.0
    end = first.block_ids[10]
    kv.release(first)
    assert kv.tree.last_used(end) == 5.0
    assert kv.tree.last_used(second.block_ids[8]) == 1.0


def test_a_chain_that_lost_its_end_was_used_when_its_end_was() -> None:
    kv = KVCacheManager(4, BLOCK)
    request = make_request(list(range(4 * BLOCK)))
    kv.now = 3.0
    serve(kv, request)
    blocks = request.block_ids
    kv.now = 7.0
    kv.release(request)
    kv.append(make_request([0]), 2)
    assert kv.tree.longest_chains(5) == [blocks[1]]
    assert kv.tree.last_used(blocks[1]) == 7.0


def test_nothing_is_recorded_while_nobody_listens() -> None:
    kv = KVCacheManager(4, BLOCK)
    serve(kv, make_request(list(range(2 * BLOCK))))
    assert kv.events.take() == []
