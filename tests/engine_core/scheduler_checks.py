"""What holds of a scheduler's blocks and rows at any time, whatever it was asked to do."""

from engine_core.prefix_search import NO_BLOCK
from engine_core.scheduler import Scheduler


def check_owners(scheduler: Scheduler) -> None:
    """Reference counts are those of the block tables, every block is counted once, and so is every row."""
    pool, table = scheduler.kv.pool, scheduler.table
    pool.check_integrity()
    if scheduler.kv.host is not None:
        scheduler.kv.host.check_integrity()
    owners: dict[int, int] = {}
    for request in table.requests:
        for group, entries in enumerate(request.block_tables if request is not None else ()):
            first, held = scheduler.kv.held_entries(request, group)
            assert entries[:first] == [NO_BLOCK] * first
            for block in held:
                owners[block] = owners.get(block, 0) + 1
    assert all(pool.reference_count(block) == owners.get(block, 0) for block in range(pool.num_blocks))
    assert pool.num_owned + pool.num_cached + (pool.num_available - pool.num_cached) == pool.num_blocks
    assert sum(1 for block in range(pool.num_blocks) if not owners.get(block)) == pool.num_available
    taken = sum(request is not None for request in table.requests)
    assert taken + table.num_free == len(table.requests)
