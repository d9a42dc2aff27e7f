"""The prefix tree and the block events against the pool itself, over any order of prompts, ends and evictions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.kv_cache_manager import KVCacheManager
from engine_core.prefix_search import digest_and_group
from engine_core.request import Request
from tests.engine_core.test_kv_cache_manager import BLOCK, make_request, serve


def findable(kv: KVCacheManager) -> dict[tuple[bytes, int], int]:
    """Digest and layer group of each block that can be found."""
    names = ((block, kv.pool.digest_of(block)) for block in range(kv.pool.num_blocks))
    return {digest_and_group(name): block for block, name in names if name is not None}


def split(digests: bytes) -> list[bytes]:
    return [digests[start : start + 16] for start in range(0, len(digests), 16)]


class Mirror:
    """What a subscriber knows."""

    def __init__(self, kv: KVCacheManager) -> None:
        self._events = kv.events
        kv.events.is_recording = True
        self.parents: dict[tuple[bytes, int], bytes] = {}
        """By digest and layer group."""

    def follow(self) -> None:
        for event in self._events.take():
            kind = type(event).__name__
            if kind == "BlocksStored":
                digests = split(event.digests)
                assert event.num_tokens == BLOCK
                for digest, parent in zip(digests, [event.parent, *digests], strict=False):
                    assert (digest, event.group) not in self.parents, "stored twice"
                    self.parents[digest, event.group] = parent
            elif kind == "BlocksRemoved":
                for digest in split(event.digests):
                    del self.parents[digest, event.group]
            else:
                self.parents.clear()


# Prompts over two tokens, so that many begin alike and equal blocks are filled by several requests at once.
PROMPTS = st.lists(st.sampled_from([[0] * BLOCK, [1] * BLOCK, [2]]), min_size=1, max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), PROMPTS),
        st.tuples(st.just("fill late"), PROMPTS),
        st.tuples(st.just("release"), st.integers(0, 7)),
        st.tuples(st.just("pass window"), st.integers(0, 7)),
        st.tuples(st.just("forget"), st.just(0)),
    ),
    max_size=40,
)


@given(num_blocks=st.integers(5, 12), windows=st.sampled_from([(0,), (0, 6), (6, 6), (0, 0, 6)]), steps=STEPS)
@settings(max_examples=300)
def test_tree_and_events_agree_with_the_pool(
    num_blocks: int, windows: tuple[int, ...], steps: list[tuple[str, object]]
) -> None:
    """Events tell of all layer groups, the tree of the first one."""
    kv = KVCacheManager(num_blocks * len(windows), BLOCK, hash_key=b"k" * 32, windows=windows)
    mirror = Mirror(kv)
    running: list[Request] = []
    late: list[Request] = []
    for now, (kind, value) in enumerate(steps):
        kv.now = float(now)
        if kind in ("serve", "fill late"):
            assert isinstance(value, list)
            request = make_request([token for part in value for token in part])
            if kv.num_groups * kv.num_blocks_for(len(request.tokens)) > kv.pool.num_available:
                continue
            if kind == "serve":
                serve(kv, request)
            else:  # looked up now, filled after others that may fill the same
                kv.start_table(request, kv.find_prefix(request, request.tokens), len(request.tokens))
                missing = kv.num_blocks_for(len(request.tokens)) - len(request.block_tables[0])
                kv.append([request], [missing])
                late.append(request)
            running.append(request)
        elif kind == "release" and running:
            assert isinstance(value, int)
            request = running.pop(value % len(running))
            if request in late:
                late.remove(request)
                kv.register_full([request], [request.tokens])
            kv.release(request)
        elif kind == "pass window" and running and kv.has_windows:
            assert isinstance(value, int)
            request = running[value % len(running)]
            if request not in late:
                behind = int(kv.count_behind(np.array(len(request.tokens))))
                kv.release_behind([request], [max(request.num_behind, behind)])
        elif kind == "forget":
            kv.pool.forget_all()
            for request in running:  # their workers are gone as well
                kv.release(request)
            running, late = [], []
        mirror.follow()
        kv.pool.check_integrity()
        found = findable(kv)
        assert mirror.parents.keys() == found.keys()
        first = {digest: block for (digest, group), block in found.items() if group == 0}
        kv.tree.check_integrity(first)
        assert all(mirror.parents[digest, 0] == kv.tree.parent(block) for digest, block in first.items())


def test_the_longest_chains_and_what_they_share() -> None:
    kv = KVCacheManager(40, BLOCK)
    kv.now = 1.0
    shared = list(range(8 * BLOCK))
    first, second = make_request([*shared, *[1] * 3 * BLOCK, 0]), make_request([*shared, *[2] * BLOCK, 0])
    for request in (first, second, make_request([3] * 2 * BLOCK)):
        serve(kv, request)
    assert [kv.tree.length(block) for block in kv.tree.longest_chains(10)] == [11, 9, 2]
    assert kv.tree.longest_chains(1) == [first.block_tables[0][10]]
    assert kv.tree.longest_shared_prefixes(10) == [first.block_tables[0][7]] == [second.block_tables[0][7]]
    assert kv.tree.num_continuations(second.block_hashes[7]) == 2
    assert kv.pool.reference_count(first.block_tables[0][7]) == 2
    kv.now = 5.0
    end = first.block_tables[0][10]
    kv.release(first)
    assert kv.tree.last_used(end) == 5.0
    assert kv.tree.last_used(second.block_tables[0][8]) == 1.0


def test_a_chain_that_lost_its_end_was_used_when_its_end_was() -> None:
    kv = KVCacheManager(4, BLOCK)
    request = make_request(list(range(4 * BLOCK)))
    kv.now = 3.0
    serve(kv, request)
    blocks = request.block_tables[0]
    kv.now = 7.0
    kv.release(request)
    kv.pool.allocate(2)
    assert kv.tree.longest_chains(5) == [blocks[1]]
    assert kv.tree.last_used(blocks[1]) == 7.0


def test_nothing_is_recorded_while_nobody_listens() -> None:
    kv = KVCacheManager(4, BLOCK)
    serve(kv, make_request(list(range(2 * BLOCK))))
    assert kv.events.take() == []
