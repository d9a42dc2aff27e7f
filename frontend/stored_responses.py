"""Responses that later requests may refer to. They are kept by the engine core, which every frontend reaches."""

import msgspec

from engine_core.ipc.stored_responses import MAX_VALUE_BYTES
from frontend.client import EngineClient, EngineError
from frontend.errors import ApiError, bad_request, from_engine
from frontend.protocol.chat import ChatMessage
from frontend.protocol.responses import Response
from frontend.response_answer import fail_response

MAX_CONVERSATION_BYTES = MAX_VALUE_BYTES // 2
"""Of the messages before an answer, so that the answer has room as well."""

ABANDONED = "The server process that worked on this response ended before it was finished: send the request again."


class StoredResponse(msgspec.Struct, kw_only=True):
    """A response and what it takes to go on after it."""

    response: Response
    messages: list[ChatMessage]
    """The conversation up to and without the answer; instructions do not belong to it."""
    owner: str | None
    """The digest of the API key that it was made for: nobody else finds it."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredResponse)


def check_conversation_size(messages: list[ChatMessage]) -> None:
    """Raises a 400 before anything is generated that could not be kept."""
    if len(_encoder.encode(messages)) > MAX_CONVERSATION_BYTES:
        raise bad_request(
            f"The conversation is longer than {MAX_CONVERSATION_BYTES} bytes and cannot be stored: send store: false.",
            "input",
        )


async def save_response(client: EngineClient, stored: StoredResponse, *, is_final: bool) -> bool:
    """Whether it is kept: a response that has ended, by a cancel too, does not end again."""
    try:
        value = _encoder.encode(stored)
        return bool(await client.utility("store_response", name=stored.response.id, value=value, is_final=is_final))
    except EngineError as error:
        raise from_engine(error) from error


async def load_response(client: EngineClient, response_id: str, owner: str | None) -> StoredResponse:
    """Raises a 404 where there is none (any more). One whose frontend died before its end has failed."""
    stored, is_abandoned = await _load(client, response_id)
    if stored is None or stored.owner != owner:
        message = f"There is no stored response {response_id[:128]!r}; the oldest are forgotten first."
        raise ApiError(404, message, code="response_not_found")
    if is_abandoned:
        fail_response(stored.response, ApiError(500, ABANDONED, code="server_error"))
        if not await save_response(client, stored, is_final=True):  # somebody else has seen it and was faster
            stored, _ = await _load(client, response_id)
            assert stored is not None
    return stored


async def _load(client: EngineClient, response_id: str) -> tuple[StoredResponse | None, bool]:
    """The response, and whether nobody is left who could finish it."""
    if len(response_id) not in range(1, 129):
        return None, False
    try:
        loaded = await client.utility("load_response", name=response_id)
    except EngineError as error:
        raise from_engine(error) from error
    value = loaded["value"]
    return None if value is None else _decoder.decode(value), loaded["is_abandoned"]


async def delete_response(client: EngineClient, response_id: str) -> None:
    try:
        await client.utility("delete_response", name=response_id)
    except EngineError as error:
        raise from_engine(error) from error


async def abort_response(client: EngineClient, response_id: str) -> None:
    """Ends what still runs for it, whichever frontend waits for that."""
    try:
        await client.utility("abort_requests", prefix=f"{response_id}-")
    except EngineError as error:
        raise from_engine(error) from error
