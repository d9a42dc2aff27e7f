"""An `Inspection` as text for a terminal of 80 columns and more."""

from collections.abc import Iterator, Sequence

from engine_core.ipc.inspection import CacheUse, Chain, InspectedRequest, Inspection

_BAR_WIDTH = 40
_DIGEST_WIDTH = 12
_ID_WIDTH = 24


def top_lines(inspection: Inspection) -> Iterator[str]:
    """Blocks, rates and queue first, then chains and requests as tables."""
    blocks = inspection.blocks
    yield (
        f"Quire, replica {inspection.replica}: up {_duration(inspection.uptime_seconds)}, "
        f"{inspection.num_steps:,} steps, {inspection.num_running:,} running, {inspection.num_waiting:,} waiting"
    )
    owned = round(_BAR_WIDTH * blocks.owned / blocks.total)
    cached = min(_BAR_WIDTH - owned, round(_BAR_WIDTH * blocks.cached / blocks.total))
    yield f"  Blocks        {'█' * owned}{'▒' * cached}{'░' * (_BAR_WIDTH - owned - cached)}"
    yield (
        f"                {blocks.owned:,} owned ({blocks.shared:,} shared), {blocks.cached:,} cached, "
        f"{blocks.free:,} free of {blocks.total:,} with {blocks.tokens_per_block} tokens"
    )
    for title, use in (("Since start", inspection.since_start), ("Last minute", inspection.last_minute)):
        yield f"  {title:<14}{_use(use)}"
    if inspection.shared_prefixes:
        yield ""
        yield from _chains("Longest shared prefixes", inspection.shared_prefixes)
    if inspection.chains:
        yield ""
        yield from _chains("Longest chains", inspection.chains)
    if inspection.requests:
        yield ""
        yield from _requests(inspection.requests)


def _use(use: CacheUse) -> str:
    return (
        f"{use.hit_rate:.1%} hit ({use.num_hit_tokens:,} of {use.num_query_tokens:,} tokens), "
        f"{use.num_preemptions:,} preemptions, {use.num_evictions:,} evictions"
    )


def _chains(title: str, chains: Sequence[Chain]) -> Iterator[str]:
    yield f"  {title:<26}{'blocks':>8}{'tokens':>10}{'owners':>8}{'go on':>7}{'last use':>12}"
    for chain in chains:
        yield (
            f"    {chain.digest[:_DIGEST_WIDTH]:<24}{chain.num_blocks:>8,}{chain.num_tokens:>10,}"
            f"{chain.num_owners:>8,}{chain.num_continuations:>7,}{_duration(chain.idle_seconds):>8} ago"
        )


def _requests(requests: Sequence[InspectedRequest]) -> Iterator[str]:
    yield f"  {'Requests':<26}{'status':>9}{'blocks':>8}{'tokens':>9}{'cached':>8}{'preempted':>11}{'age':>7}"
    for request in requests:
        # An id is a client's own text: nothing in it may steer the terminal.
        name = "".join(letter if letter.isprintable() else "?" for letter in request.request_id)
        name = name if len(name) < _ID_WIDTH else f"{name[: _ID_WIDTH - 2]}…"
        yield (
            f"    {name:<{_ID_WIDTH}}{request.status:>9}{request.num_blocks:>8,}{request.num_tokens:>9,}"
            f"{request.num_cached_tokens:>8,}{request.num_preemptions:>11,}{_duration(request.age_seconds):>7}"
        )


def _duration(seconds: float) -> str:
    """Two digits that matter: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
