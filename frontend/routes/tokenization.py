"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from sanic import Request
from sanic.response import HTTPResponse

from frontend.errors import bad_request
from frontend.json_response import json_response
from frontend.protocol.decode import decode_body, warning_header
from frontend.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from frontend.state import FrontendState
from frontend.tools import template_tools


async def tokenize(request: Request, state: FrontendState) -> HTTPResponse:
    asked, unknown = decode_body(request.body, TokenizeRequest, strict=state.config.strict_requests)
    state.model_name(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("Give either prompt or messages.", "prompt")
    if asked.messages is not None:
        text = state.input_processor.render_chat(
            asked.messages,
            tools=template_tools(asked.tools, None),
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=bool(asked.continue_final_message),
            kwargs=asked.chat_template_kwargs,
            template=asked.chat_template,
        )
        token_ids = await state.tokenizer.encode_async(text, bool(asked.add_special_tokens))
    else:
        token_ids = await state.tokenizer.encode_async(asked.prompt or "", asked.add_special_tokens is not False)
    answer = TokenizeResponse(count=len(token_ids), max_model_len=state.config.max_model_len, tokens=token_ids)
    if asked.return_token_strs:
        answer.token_strs = await state.tokenizer.token_texts_async(token_ids)
    return json_response(answer, headers=warning_header(unknown))


async def detokenize(request: Request, state: FrontendState) -> HTTPResponse:
    asked, unknown = decode_body(request.body, DetokenizeRequest, strict=state.config.strict_requests)
    state.model_name(asked.model)
    if asked.tokens and not 0 <= min(asked.tokens) <= max(asked.tokens) < 2**31:
        raise bad_request("tokens must have token ids from 0 on.", "tokens")
    text = await state.tokenizer.decode_async(asked.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text), headers=warning_header(unknown))


async def tokenizer_info(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response(state.tokenizer_info)
