"""POST /v1/responses; GET and DELETE of a stored one; POST to cancel one that runs in the background."""

import logging
import uuid
from dataclasses import replace

from sanic import Request
from sanic.response import HTTPResponse

from frontend.errors import ApiError, bad_request
from frontend.event_streaming import stream_events
from frontend.generation import Generation, Order
from frontend.protocol.chat import ChatMessage
from frontend.protocol.common import share_key_of
from frontend.protocol.decode import decode_body, warning_header
from frontend.protocol.responses import DeletedResponse, Response, ResponsesRequest
from frontend.response_answer import fail_response, new_response, write_response
from frontend.response_conversation import Conversation
from frontend.response_input import as_chat, check_response_request, conversation_of, own_name, own_names
from frontend.response_output import OutputWriter
from frontend.response_stream import ResponseStream
from frontend.responses import json_response
from frontend.routes.chat_completions import chat_order
from frontend.state import FrontendState
from frontend.stored_responses import (
    StoredResponse,
    abort_response,
    check_conversation_size,
    delete_response,
    load_response,
    save_response,
)

logger = logging.getLogger(__name__)


async def create(request: Request, state: FrontendState) -> HTTPResponse | None:
    asked, unknown = decode_body(request.body, ResponsesRequest, strict=state.config.strict_requests)
    headers = warning_header(unknown)
    model = state.model_name(asked.model)
    check_response_request(asked)
    owner = share_key_of(request.headers)
    async with state.generating():
        messages = conversation_of(asked, await _earlier(asked.previous_response_id, state, owner))
        response = new_response(asked, f"resp_{uuid.uuid4().hex}", model)
        stored = StoredResponse(response=response, messages=messages, owner=owner)
        if response.store:
            check_conversation_size(messages)
        order = await _order(asked, messages, response.id, state, request)
        writer = OutputWriter(asked, state.tokenizer)
        if asked.background:
            await save_response(state.client, stored, is_final=False)
            state.start_background(_finish_in_background(order, writer, stored, state))
            return json_response(response, headers=headers)

        async def keep(response: Response) -> None:
            if response.store:
                await save_response(state.client, stored, is_final=True)

        generation = Generation(order, state.tokenizer, state.client)
        try:
            if asked.stream:
                form = ResponseStream(response, writer, generation, keep)
                await stream_events(request, generation, form, state.keep_alive, headers)
                return None
            await write_response(response, writer, generation)
            await keep(response)
            return json_response(response, headers=headers)
        finally:
            generation.close()


async def retrieve(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    if request.args.get("stream", "false") != "false":
        raise bad_request("stream is not supported for a stored response: ask again until it has ended.", "stream")
    stored = await load_response(state.client, response_id, share_key_of(request.headers))
    return json_response(stored.response)


async def delete(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    await load_response(state.client, response_id, share_key_of(request.headers))
    await delete_response(state.client, response_id)
    return json_response(DeletedResponse(id=response_id, deleted=True))


async def cancel(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    """Only what runs in the background: whoever waits for an answer cancels it by hanging up."""
    owner = share_key_of(request.headers)
    stored = await load_response(state.client, response_id, owner)
    if not stored.response.background:
        raise bad_request("Only a response made with background: true can be cancelled.", "response_id")
    if stored.response.status == "in_progress":
        stored.response.status = "cancelled"
        if await save_response(state.client, stored, is_final=True):
            await abort_response(state.client, response_id)
        else:  # it ended meanwhile
            stored = await load_response(state.client, response_id, owner)
    return json_response(stored.response)


async def _earlier(response_id: str | None, state: FrontendState, owner: str | None) -> Conversation:
    """The conversation up to and with an earlier answer."""
    if response_id is None:
        return Conversation()
    try:
        stored = await load_response(state.client, response_id, owner)
    except ApiError as error:
        if error.status != 404:
            raise
        raise bad_request(error.message, "previous_response_id", "previous_response_not_found") from error
    if stored.response.status not in ("completed", "incomplete"):
        raise bad_request(
            f"The response {response_id!r} has no answer to go on after: it is {stored.response.status}.",
            "previous_response_id",
        )
    conversation = Conversation(stored.messages)
    conversation.add_output(stored.response.output)
    return conversation


async def _order(
    asked: ResponsesRequest, messages: list[ChatMessage], response_id: str, state: FrontendState, request: Request
) -> Order:
    # Instructions are those of this request only, so that they are no part of what is stored.
    first = [] if asked.instructions is None else [ChatMessage(role="system", content=asked.instructions)]
    try:
        order = await chat_order(as_chat(asked, first + messages), state, request.headers, response_id)
        return replace(order, grammar_param=order.grammar_param and own_name(order.grammar_param))
    except ApiError as error:
        raise own_names(error) from error


async def _finish_in_background(
    order: Order, writer: OutputWriter, stored: StoredResponse, state: FrontendState
) -> None:
    """Generates and stores. What fails is stored as well, unless a cancel has ended it before."""
    try:
        generation = Generation(order, state.tokenizer, state.client)
        try:
            await write_response(stored.response, writer, generation)
        finally:
            generation.close()
    except ApiError as error:
        fail_response(stored.response, error)
    try:
        await save_response(state.client, stored, is_final=True)
    except ApiError as error:
        logger.warning("The response %s could not be stored: %s", stored.response.id, error.message)
