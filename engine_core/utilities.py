"""Questions that a client may ask an engine core beside its requests; one function a method, one line in `METHODS`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from engine_core.inspector import block_page
from engine_core.ipc.inspection import AbortArguments, BlockPage, InspectArguments, Inspection, SnapshotArguments
from engine_core.ipc.messages import Utility, UtilityReply

if TYPE_CHECKING:
    from engine_core.engine_core import EngineCore


def _metrics(core: "EngineCore", arguments: dict[str, Any]) -> str:
    """All metrics in Prometheus' text format."""
    return core.metrics.text()


def _status(core: "EngineCore", arguments: dict[str, Any]) -> dict[str, int]:
    """What readiness looks at: `progress` moves with every collected step, `pending` is unfinished requests."""
    scheduler = core.scheduler
    return {
        "progress": core.num_collected,
        "draining": int(core.is_draining),
        "pending": scheduler.num_running + scheduler.num_waiting,
        "running": scheduler.num_running,
        "waiting": scheduler.num_waiting,
        "free_blocks": scheduler.kv.pool.num_available,
        "total_blocks": scheduler.kv.pool.num_blocks,
    }


def _inspect(core: "EngineCore", arguments: dict[str, Any]) -> Inspection:
    """What `quire top` shows."""
    limit = msgspec.convert(arguments, InspectArguments).limit
    return core.inspector.inspect(limit, core.num_collected, time.monotonic())


def _block_snapshot(core: "EngineCore", arguments: dict[str, Any]) -> BlockPage:
    """What can be found in the prefix cache, a page at a time; a subscriber's events tell what changes meanwhile."""
    return block_page(core.scheduler.kv, msgspec.convert(arguments, SnapshotArguments).cursor, core.epoch)


def _reset_prefix_cache(core: "EngineCore", arguments: dict[str, Any]) -> int:
    """Prompts find nothing of what was computed before; returns how many blocks they could have found."""
    return core.scheduler.kv.forget_all()


def _abort_requests(core: "EngineCore", arguments: dict[str, Any]) -> int:
    """Ends requests of any client by the beginning of their ids; returns how many."""
    return core.ends.abort_all(msgspec.convert(arguments, AbortArguments).prefix)


METHODS: dict[str, Callable[["EngineCore", dict[str, Any]], Any]] = {
    "abort_requests": _abort_requests,
    "block_snapshot": _block_snapshot,
    "inspect": _inspect,
    "metrics": _metrics,
    "reset_prefix_cache": _reset_prefix_cache,
    "status": _status,
}


def answer(core: "EngineCore", question: Utility) -> UtilityReply:
    """Runs one method; an unknown one, or arguments that it does not take, are answered with an error."""
    method = METHODS.get(question.method)
    if method is None:
        known = ", ".join(sorted(METHODS))
        return UtilityReply(
            call_id=question.call_id, error=f"There is no method {question.method!r}; there are: {known}."
        )
    try:
        return UtilityReply(call_id=question.call_id, result=method(core, question.arguments))
    except msgspec.ValidationError as error:
        return UtilityReply(call_id=question.call_id, error=f"{question.method}: {error}.")
