"""Stores in a folder and responses to put into them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from frontend.errors import ApiError
from frontend.protocol.response_events import OutputTextDelta, ResponseEvent
from frontend.protocol.responses import OutputMessage, OutputText, ResponsesRequest
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import new_response
from frontend.responses.database import check
from frontend.responses.following import follow
from frontend.responses.store import ResponseStore

Scenario = Callable[[ResponseStore], Awaitable[None]]


def response(name: str, text: str = "", *, owner: str | None = None, status: Any = "completed") -> StoredResponse:
    """With one item, whose id is that of the response and an `i`."""
    made = new_response(ResponsesRequest(input="x", background=True), name, "m")
    made.status = status
    if status == "completed":
        content = [OutputText(text=text)]
        made.output = [OutputMessage(id=f"{name}i", status="completed", content=content)]
    return StoredResponse(response=made, messages=[], item_ids=[], deltas=[[]] * len(made.output), owner=owner)


def delta(number: int, text: str = "x") -> OutputTextDelta:
    fields = {"item_id": "i", "output_index": 0, "content_index": 0, "logprobs": []}
    return OutputTextDelta(sequence_number=number, delta=text, **fields)  # type: ignore[arg-type]


@contextlib.contextmanager
def opened(folder: Path, **limits: Any) -> Iterator[ResponseStore]:
    check(str(folder / "r.db"))
    made = ResponseStore(str(folder / "r.db"), str(folder), **limits)
    yield made
    made.close()


def run(folder: Path, scenario: Scenario, **limits: Any) -> None:
    with opened(folder, **limits) as made:
        asyncio.run(_awaited(scenario(made)))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def there(store: ResponseStore, names: str, owner: str | None = None) -> str:
    """Those of the names that are found."""
    found = ""
    for name in names:
        with contextlib.suppress(ApiError):
            found += (await store.load(name, owner)).response.id
    return found


async def events_of(store: ResponseStore, name: str, start: int = 0) -> list[ResponseEvent]:
    return [event async for event in follow(await store.load(name, None), start, store)]
