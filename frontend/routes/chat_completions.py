"""POST /v1/chat/completions."""

import time
import uuid

from sanic import Request
from sanic.response import HTTPResponse

from frontend.beams.generation import BeamGeneration
from frontend.beams.input import beam_params
from frontend.chat_answer import ChatAnswer
from frontend.errors import bad_request
from frontend.generation import Generation, Order
from frontend.grammars.tool_calls import InputGrammar
from frontend.json_response import json_response
from frontend.protocol.chat import ChatCompletionRequest
from frontend.protocol.common import trace_context_of
from frontend.protocol.decode import decode_body, warning_header
from frontend.state import FrontendState
from frontend.streaming import stream_answer


async def create(request: Request, state: FrontendState) -> HTTPResponse | None:
    chat, unknown = decode_body(request.body, ChatCompletionRequest, strict=state.config.strict_requests)
    headers = warning_header(unknown)
    model = state.model_name(chat.model)
    async with state.generating():
        order = await chat_order(chat, state, request, f"chatcmpl-{chat.request_id or uuid.uuid4().hex}")
        parsers = order.options.parsers
        answer = ChatAnswer(
            order.response_id,
            int(time.time()),
            model,
            state.tokenizer,
            logprobs=bool(chat.logprobs),
            prompt_logprobs=chat.prompt_logprobs,
            prompt_token_ids=list(order.prompts[0].token_ids) if chat.return_token_ids else None,
            is_call_forced=parsers is not None and parsers.is_call_forced,
        )
        if order.beams:
            beams = BeamGeneration(order, chat.num_choices, state.tokenizer, state.client)
            return json_response(answer.whole(await beams.collect(), beams.usage()), headers=headers)
        generation = Generation(order, state.tokenizer, state.client)
        try:
            if chat.stream:
                await stream_answer(request, generation, answer, chat.stream_options, state.keep_alive, headers)
                return None
            return json_response(answer.whole(await generation.collect(), generation.usage()), headers=headers)
        finally:
            generation.close()


async def chat_order(
    chat: ChatCompletionRequest,
    state: FrontendState,
    request: Request,
    response_id: str,
    input_grammars: dict[str, InputGrammar] | None = None,
) -> Order:
    """What a chat asks of the engine; other endpoints that mean a chat come here as well. `input_grammars`: of custom
    tools, by their names."""
    processor = state.input_processor
    processor.check_choices(chat, num_prompts=1, num_samples=chat.num_choices)
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise bad_request("modalities must be ['text']: this model writes text only.", "modalities")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise bad_request("top_logprobs must come with logprobs: true.", "top_logprobs")
    logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
    prompt, grammar = await processor.prepare_chat(chat, input_grammars or {})
    sampling = processor.sampling(
        chat,
        prompt,
        max_tokens=chat.max_answer_tokens,
        logprobs=logprobs,
        prompt_logprobs=chat.prompt_logprobs,
        grammar=grammar,
    )
    beams = []
    if chat.use_beam_search:
        max_tokens, has_grammar = sampling["max_tokens"], grammar is not None
        beams.append(beam_params(chat, chat.num_choices, max_tokens, processor.limits, has_grammar=has_grammar))
    return Order(
        response_id=response_id,
        prompts=[prompt],
        samplings=[sampling],
        grammar_param=None if grammar is None else grammar.param,
        num_samples=chat.num_choices,
        options=processor.chat_output_options(chat, prompt, is_bound=grammar is not None),
        priority=chat.priority or 0,
        share_key=state.shares.key_of(request),
        cache_salt=state.shares.salt_of(request, chat.cache_salt),
        trace_context=trace_context_of(request.headers),
        beams=beams,
    )
