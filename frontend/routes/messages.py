"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import uuid
from dataclasses import replace

from sanic import Request
from sanic.response import HTTPResponse

from frontend.errors import ApiError
from frontend.event_streaming import stream_events
from frontend.generation import Generation
from frontend.json_response import json_response
from frontend.messages.answer import MessageAnswer
from frontend.messages.input import as_chat, as_chat_to_answer, own_names
from frontend.protocol.decode import decode_body, warning_header
from frontend.protocol.messages import CountTokensRequest, MessagesRequest, TokenCount
from frontend.routes.chat_completions import chat_order
from frontend.state import FrontendState
from frontend.system_messages import arranged


async def create(request: Request, state: FrontendState) -> HTTPResponse | None:
    asked, unknown = decode_body(request.body, MessagesRequest, strict=state.config.strict_requests)
    headers = warning_header(unknown)
    model = state.model_name(asked.model)
    message_id = f"msg_{uuid.uuid4().hex}"
    async with state.generating():
        try:
            processor = state.input_processor
            chat = as_chat_to_answer(asked, knows_reasoning=processor.knows_reasoning)
            chat.messages = arranged(chat.messages, processor.takes_system_anywhere)
            order = await chat_order(chat, state, request, message_id)
            # Clients look at the reason of the end for whether there is a tool to run, a named one too.
            order = replace(order, options=replace(order.options, finishes_with_calls=True))
            generation = Generation(order, state.tokenizer, state.client)
            try:
                answer = MessageAnswer(message_id, model, generation)
                if asked.stream:
                    await stream_events(request, generation, answer, state.keep_alive, headers)
                    return None
                return json_response(answer.whole((await generation.collect())[0]), headers=headers)
            finally:
                generation.close()
        except ApiError as error:
            raise own_names(error) from error


async def count_tokens(request: Request, state: FrontendState) -> HTTPResponse:
    asked, unknown = decode_body(request.body, CountTokensRequest, strict=state.config.strict_requests)
    state.model_name(asked.model)
    processor = state.input_processor
    try:
        chat = as_chat(asked)
        chat.messages = arranged(chat.messages, processor.takes_system_anywhere)
        with state.counted():
            prompt = await processor.chat_prompt(chat)
    except ApiError as error:
        raise own_names(error) from error
    return json_response(TokenCount(input_tokens=len(prompt.token_ids)), headers=warning_header(unknown))
