"""The end of a server's connections: what moves may finish, what its client holds up is cut."""

import asyncio
from collections.abc import Callable
from typing import Any

from frontend.http_protocol import DeadlineHttpProtocol

CLOSE_SECONDS = 5.0
"""For what ended late to be stored, and for connections to take the last bytes of their answers."""
STILL_SECONDS = 1.0
"""A connection on which nothing has moved for so long waits for its client."""
_LOOK_SECONDS = 0.02


async def close_connections(connections: set[DeadlineHttpProtocol], num_open: Callable[[], int]) -> str | None:
    """Returns when all are closed: what was cut in one sentence, if anything. `num_open`: handlers that still work."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CLOSE_SECONDS
    seen, moved_at = None, loop.time()
    while (connections or num_open()) and loop.time() < deadline:
        for connection in list(connections):
            connection.close_if_idle()
        state: Any = num_open(), {connection: connection.movement for connection in connections}
        if state != seen:
            seen, moved_at = state, loop.time()
        elif loop.time() - moved_at > STILL_SECONDS:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    return await _cut_all(list(connections)) if connections else None


async def _cut_all(late: list[DeadlineHttpProtocol]) -> str:
    unread = sum(connection.has_unread_answer for connection in late)
    half_sent = sum(connection.is_sending and not connection.has_unread_answer for connection in late)
    for connection in late:
        connection.cut()
    await asyncio.gather(*(connection.wait_closed() for connection in late))
    counts = {
        "with an answer that the client did not read": unread,
        "with a request that the client had not sent in full": half_sent,
        "whose answer had not ended": len(late) - unread - half_sent,
    }
    return f"Connections cut: {', '.join(f'{count} {which}' for which, count in counts.items() if count)}."
