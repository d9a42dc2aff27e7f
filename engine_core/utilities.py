"""Questions that a client may ask an engine core beside its requests; one function a method, one line in `METHODS`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from engine_core.inspector import block_page
from engine_core.ipc.inspection import BlockPage, InspectArguments, Inspection, SnapshotArguments
from engine_core.ipc.messages import Utility, UtilityReply
from engine_core.ipc.stored_responses import (
    AbortArguments,
    ItemsArguments,
    LoadedProgress,
    LoadedResponse,
    NameArguments,
    ProgressArguments,
    StoreArguments,
)

if TYPE_CHECKING:
    from engine_core.engine_core import EngineCore


def _metrics(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> str:
    """All metrics in Prometheus' text format."""
    return core.metrics.text()


def _status(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> dict[str, int]:
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


def _inspect(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> Inspection:
    """What `quire top` shows."""
    limit = msgspec.convert(arguments, InspectArguments).limit
    return core.inspector.inspect(limit, core.num_collected, time.monotonic())


def _block_snapshot(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> BlockPage:
    """What can be found in the prefix cache, a page at a time; a subscriber's events tell what changes meanwhile."""
    return block_page(core.scheduler.kv, msgspec.convert(arguments, SnapshotArguments).cursor, core.epoch)


def _store_response(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> bool:
    """Whether it is kept."""
    asked = msgspec.convert(arguments, StoreArguments)
    writer = None if asked.is_final else client
    return core.responses.put(asked.name, asked.value, writer, tuple(asked.items), asked.progress, asked.owner)


def _load_response(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> LoadedResponse:
    name = msgspec.convert(arguments, NameArguments).name
    return LoadedResponse(value=core.responses.get(name), is_abandoned=_is_abandoned(core, client, name))


def _store_progress(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> bool:
    """Whether it is kept."""
    asked = msgspec.convert(arguments, ProgressArguments)
    return core.responses.put_progress(asked.name, asked.progress)


def _load_progress(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> LoadedProgress:
    name = msgspec.convert(arguments, NameArguments).name
    is_running = core.responses.writer_of(name) is not None and not _is_abandoned(core, client, name)
    return LoadedProgress(progress=core.responses.progress_of(name), is_running=is_running)


def _is_abandoned(core: "EngineCore", client: bytes, name: str) -> bool:
    """Whether a final value is still to come and whoever was to bring it is gone."""
    writer = core.responses.writer_of(name)
    return writer is not None and writer != client and core.has_left(writer)


def _find_items(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> list[str | None]:
    """Which response has each of these items."""
    return [core.responses.name_of_item(item) for item in msgspec.convert(arguments, ItemsArguments).items]


def _delete_response(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> bool:
    """Whether there was one."""
    return core.responses.remove(msgspec.convert(arguments, NameArguments).name)


def _reset_prefix_cache(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> int:
    """Prompts find nothing of what was computed before; returns how many blocks they could have found."""
    return core.scheduler.kv.forget_all()


def _abort_requests(core: "EngineCore", client: bytes, arguments: dict[str, Any]) -> int:
    """Ends requests of any client by the beginning of their ids; returns how many."""
    return core.ends.abort_all(msgspec.convert(arguments, AbortArguments).prefix)


METHODS: dict[str, Callable[["EngineCore", bytes, dict[str, Any]], Any]] = {
    "abort_requests": _abort_requests,
    "block_snapshot": _block_snapshot,
    "delete_response": _delete_response,
    "find_items": _find_items,
    "inspect": _inspect,
    "load_progress": _load_progress,
    "load_response": _load_response,
    "metrics": _metrics,
    "reset_prefix_cache": _reset_prefix_cache,
    "status": _status,
    "store_progress": _store_progress,
    "store_response": _store_response,
}


def answer(core: "EngineCore", client: bytes, question: Utility) -> UtilityReply:
    """Runs one method for a client; an unknown one, or arguments that it does not take, are answered with an error."""
    method = METHODS.get(question.method)
    if method is None:
        known = ", ".join(sorted(METHODS))
        return UtilityReply(
            call_id=question.call_id, error=f"There is no method {question.method!r}; there are: {known}."
        )
    try:
        return UtilityReply(call_id=question.call_id, result=method(core, client, question.arguments))
    except msgspec.ValidationError as error:
        return UtilityReply(call_id=question.call_id, error=f"{question.method}: {error}.")
