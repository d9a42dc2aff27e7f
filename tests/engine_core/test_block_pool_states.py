"""The block pool as a hypothesis state machine against a model that keeps owners as plain lists."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.block_pool import BlockPool
from tests.engine_core.state_machines import machine_settings


class BlockPoolMachine(RuleBasedStateMachine):
    """`tables` are the block tables of imaginary requests; what is cached and in which order is tracked beside them."""

    @initialize(num_blocks=st.integers(1, 24))
    def build(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.digests: dict[int, bytes] = {}
        self.evictable: list[int] = []  # cached blocks, the next to be given up first
        self.num_digests = 0

    @precondition(lambda self: self.pool.num_available)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.pool.num_available))
        num_free = self.pool.num_available - len(self.evictable)
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert not set(blocks) & {block for table in self.tables for block in table}, "an owned block was given out"
        given_up = self.evictable[: max(0, count - num_free)]
        assert set(blocks) & set(self.evictable) == set(given_up), "a cached block went before a free or older one"
        for block in given_up:
            del self.digests[block]
        del self.evictable[: len(given_up)]
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        block = data.draw(st.sampled_from(table))
        self.num_digests += 1
        private = self.pool.register([block, block], [b"%d" % self.num_digests, b"another"])
        assert private == ([0, 1] if block in self.digests else [1])
        self.digests.setdefault(block, b"%d" % self.num_digests)

    @precondition(lambda self: self.digests)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.digests)), min_size=1, unique=True))
        assert [self.pool.find(self.digests[block]) for block in blocks] == blocks
        self.pool.share(blocks)
        self.evictable = [block for block in self.evictable if block not in blocks]
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        owned = {block for other in self.tables for block in other}
        self.evictable += [block for block in reversed(table) if block in self.digests and block not in owned]

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        self.digests.clear()
        self.evictable.clear()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        for block in range(self.pool.num_blocks):
            owners = sum(block in table for table in self.tables)
            assert self.pool.reference_count(block) == owners
        assert self.pool.num_cached == len(self.evictable)
        assert self.pool.num_owned == len({block for table in self.tables for block in table})
        for block, digest in self.digests.items():
            assert self.pool.find(digest) == block


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = machine_settings()
