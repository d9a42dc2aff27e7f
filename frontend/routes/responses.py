"""POST /v1/responses; GET and DELETE of a stored one, GET of its input; POST to cancel one in the background."""

import contextlib
import uuid
from dataclasses import replace

from msgspec import UNSET, structs
from sanic import Request
from sanic.response import HTTPResponse

from frontend.client import EngineError
from frontend.errors import ApiError, bad_request, from_engine
from frontend.event_streaming import stream_events
from frontend.generation import Generation, Order
from frontend.json_response import json_response
from frontend.protocol.chat import ChatMessage
from frontend.protocol.common import share_key_of
from frontend.protocol.decode import decode_body, decode_query, warning_header
from frontend.protocol.input_items import InputItemsQuery
from frontend.protocol.responses import DeletedResponse, Response, ResponsesRequest, RetrieveQuery
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import new_response, write_response
from frontend.responses.background import BackgroundResponse
from frontend.responses.conversation import Conversation
from frontend.responses.custom_tools import input_grammars
from frontend.responses.following import stream_response
from frontend.responses.input import add_new_input, as_chat, check_response_request, own_name, own_names
from frontend.responses.input_items import page_of
from frontend.responses.item_references import referenced_items
from frontend.responses.output import OutputWriter
from frontend.responses.replay import begun_response
from frontend.responses.store import HAS_ANSWER, check_conversation_size
from frontend.responses.stream import ResponseStream
from frontend.routes.chat_completions import chat_order
from frontend.state import FrontendState
from frontend.system_messages import arranged


async def create(request: Request, state: FrontendState) -> HTTPResponse | None:
    asked, unknown = decode_body(request.body, ResponsesRequest, strict=state.config.strict_requests)
    headers = warning_header(unknown)
    model = state.model_name(asked.model)
    check_response_request(asked)
    owner = share_key_of(request.headers)
    async with state.generating():
        conversation = await _conversation(asked, state, owner)
        response = new_response(asked, f"resp_{uuid.uuid4().hex}", model)
        writer = OutputWriter(asked, state.tokenizer)
        stored = StoredResponse(
            response=response,
            messages=conversation.messages,
            item_ids=conversation.item_ids,
            deltas=writer.deltas,
            owner=owner,
        )
        if response.store:
            check_conversation_size(stored.messages)
        order = await _order(asked, stored.messages, response.id, state, request)
        generation = Generation(order, state.tokenizer, state.client)
        with contextlib.ExitStack() as stack:
            stack.callback(generation.close)
            if asked.background:
                begun = structs.replace(stored, response=begun_response(response))
                running = BackgroundResponse(stored, writer, generation, state)
                stack.pop_all()  # it has the generation now
                await running.begin()
                if asked.stream:
                    await stream_response(request, begun, 0, state, headers)
                    return None
                return json_response(begun.response, headers=headers)

            async def keep(response: Response) -> Response:
                if response.store:
                    await state.responses.add(stored)
                return response

            if asked.stream:
                form = ResponseStream(response, writer, generation, keep)
                await stream_events(request, generation, form, state.keep_alive, headers)
                return None
            await write_response(response, writer, generation)
            return json_response(await keep(response), headers=headers)


async def retrieve(request: Request, state: FrontendState, response_id: str) -> HTTPResponse | None:
    query = decode_query(request.args, RetrieveQuery)
    if query.starting_after is not UNSET and not query.stream:
        raise bad_request("starting_after must come with stream=true.", "starting_after")
    stored = await state.responses.load(response_id, share_key_of(request.headers))
    if query.stream and request.method != "HEAD":
        start = 0 if query.starting_after is UNSET else query.starting_after + 1
        with state.counted():
            await stream_response(request, stored, start, state, {})
        return None
    return json_response(stored.response)


async def list_input_items(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    query = decode_query(request.args, InputItemsQuery)
    stored = await state.responses.load(response_id, share_key_of(request.headers))
    return json_response(page_of(stored, query))


async def delete(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    stored = await state.responses.load(response_id, share_key_of(request.headers))
    await state.responses.delete(response_id)
    if stored.response.status == "in_progress":
        await _abort(state, response_id)
    return json_response(DeletedResponse(id=response_id, deleted=True))


async def cancel(request: Request, state: FrontendState, response_id: str) -> HTTPResponse:
    """Only what runs in the background: whoever waits for an answer cancels it by hanging up."""
    owner = share_key_of(request.headers)
    stored = await state.responses.load(response_id, owner)
    if not stored.response.background:
        raise bad_request("Only a response made with background: true can be cancelled.", "response_id")
    if stored.response.status == "in_progress":
        stored.response.status = "cancelled"
        if await state.responses.end_early(stored):
            await _abort(state, response_id)
        else:  # it ended meanwhile
            stored = await state.responses.load(response_id, owner)
    return json_response(stored.response)


async def _abort(state: FrontendState, response_id: str) -> None:
    """Ends what still runs for it, whichever frontend waits for that."""
    try:
        await state.client.utility("abort_requests", prefix=f"{response_id}-")
    except EngineError as error:
        raise from_engine(error) from error


async def _conversation(asked: ResponsesRequest, state: FrontendState, owner: str | None) -> Conversation:
    """All that the request is about: what came before, and its own input."""
    conversation = await _earlier(asked.previous_response_id, state, owner)
    referenced = await referenced_items(state.responses, asked.input, owner, conversation.item_ids)
    add_new_input(conversation, asked, referenced)
    return conversation


async def _earlier(response_id: str | None, state: FrontendState, owner: str | None) -> Conversation:
    """The conversation up to and with an earlier answer."""
    if response_id is None:
        return Conversation()
    try:
        stored = await state.responses.load(response_id, owner)
    except ApiError as error:
        if error.status != 404:
            raise
        raise bad_request(error.message, "previous_response_id", "previous_response_not_found") from error
    if stored.response.status not in HAS_ANSWER:
        raise bad_request(
            f"The response {response_id!r} has no answer to go on after: it is {stored.response.status}.",
            "previous_response_id",
        )
    conversation = Conversation(stored.messages, stored.item_ids)
    conversation.add_output(stored.response.output)
    return conversation


async def _order(
    asked: ResponsesRequest, messages: list[ChatMessage], response_id: str, state: FrontendState, request: Request
) -> Order:
    # Instructions are those of this request only, so that they are no part of what is stored.
    first = [] if asked.instructions is None else [ChatMessage(role="system", content=asked.instructions)]
    conversation = arranged(first + messages, state.input_processor.takes_system_anywhere)
    try:
        chat, grammars = as_chat(asked, conversation), input_grammars(asked.tools)
        order = await chat_order(chat, state, request, response_id, grammars)
        return replace(order, grammar_param=order.grammar_param and own_name(order.grammar_param))
    except ApiError as error:
        raise own_names(error) from error
