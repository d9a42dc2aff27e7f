"""Responses that later requests may refer to. They are kept by the engine core, which every frontend reaches."""

from typing import Any

import msgspec

from engine_core.ipc.stored_responses import MAX_VALUE_BYTES
from frontend.client import EngineClient, EngineError
from frontend.errors import ApiError, bad_request, from_engine
from frontend.protocol.chat import ChatMessage
from frontend.protocol.stored_responses import Progress, StoredResponse
from frontend.responses.answer import fail_response

MAX_CONVERSATION_BYTES = MAX_VALUE_BYTES // 2
"""Of the messages before an answer, so that the answer has room as well."""

ABANDONED = "The server process that worked on this response ended before it was finished: send the request again."
HAS_ANSWER = ("completed", "incomplete")
"""Statuses of a response whose output is whole: its events and its items follow from it."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredResponse)
_progress_decoder = msgspec.msgpack.Decoder(Progress)


def check_conversation_size(messages: list[ChatMessage]) -> None:
    """Raises a 400 before anything is generated that could not be kept."""
    if len(_encoder.encode(messages)) > MAX_CONVERSATION_BYTES:
        raise bad_request(
            f"The conversation is longer than {MAX_CONVERSATION_BYTES} bytes and cannot be stored: send store: false.",
            "input",
        )


async def save_response(
    client: EngineClient, stored: StoredResponse, *, is_final: bool, progress: Progress | None = None
) -> bool:
    """Whether it is kept: a response that has ended, by a cancel or a deletion too, does not end again.

    `progress` None leaves what is kept of it. One that has an answer needs none. Raises a 500 for one that is too long.
    """
    response = stored.response
    value = _encoder.encode(stored)
    if len(value) > MAX_VALUE_BYTES:
        message = f"The response is longer than {MAX_VALUE_BYTES} bytes and cannot be stored: send store: false."
        raise ApiError(500, message, code="server_error")
    fields: dict[str, Any] = {"name": response.id, "value": value, "is_final": is_final, "owner": stored.owner}
    if response.status in HAS_ANSWER:
        fields |= {"items": [item.id for item in response.output], "progress": b""}
    elif progress is not None:
        fields["progress"] = _encode_progress(progress)
    return bool(await _ask(client, "store_response", **fields))


async def load_response(client: EngineClient, response_id: str, owner: str | None) -> StoredResponse:
    """Raises a 404 where there is none (any more). One whose frontend died before its end has failed."""
    stored, is_abandoned = await _load(client, response_id)
    if stored is None or stored.owner != owner:
        message = f"There is no stored response {response_id[:128]!r}; the oldest are forgotten first."
        raise ApiError(404, message, code="response_not_found")
    if is_abandoned:
        fail_response(stored.response, ApiError(500, ABANDONED, code="server_error"))
        if not await save_response(client, stored, is_final=True):  # somebody else has seen it and was faster
            return await load_response(client, response_id, owner)
    return stored


async def _load(client: EngineClient, response_id: str) -> tuple[StoredResponse | None, bool]:
    """The response, and whether nobody is left who could finish it."""
    if len(response_id) not in range(1, 129):
        return None, False
    loaded = await _ask(client, "load_response", name=response_id)
    value = loaded["value"]
    return None if value is None else _decoder.decode(value), loaded["is_abandoned"]


async def save_progress(client: EngineClient, response_id: str, progress: Progress) -> bool:
    """Whether there is such a response."""
    return bool(await _ask(client, "store_progress", name=response_id, progress=_encode_progress(progress)))


async def load_progress(client: EngineClient, response_id: str) -> tuple[Progress | None, bool]:
    """How far a response has come, where that is kept, and whether it still runs."""
    loaded = await _ask(client, "load_progress", name=response_id)
    progress = loaded["progress"]
    return _progress_decoder.decode(progress) if progress else None, loaded["is_running"]


def _encode_progress(progress: Progress) -> bytes:
    """Nothing where it is too long to be kept: whoever follows sees the end then, and not the way to it."""
    value = _encoder.encode(progress)
    return value if len(value) <= MAX_VALUE_BYTES else b""


async def find_items(client: EngineClient, item_ids: list[str]) -> list[str | None]:
    """Which stored response has each of these items."""
    return list(await _ask(client, "find_items", items=item_ids))


async def delete_response(client: EngineClient, response_id: str) -> None:
    await _ask(client, "delete_response", name=response_id)


async def abort_response(client: EngineClient, response_id: str) -> None:
    """Ends what still runs for it, whichever frontend waits for that."""
    await _ask(client, "abort_requests", prefix=f"{response_id}-")


async def _ask(client: EngineClient, method: str, **arguments: Any) -> Any:
    try:
        return await client.utility(method, **arguments)
    except EngineError as error:
        raise from_engine(error) from error
