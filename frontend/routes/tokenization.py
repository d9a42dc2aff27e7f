"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from sanic import Request
from sanic.response import HTTPResponse

from frontend.json_response import json_response
from frontend.preparation.jobs import Answer, DetokenizeJob, TokenizeJob
from frontend.protocol.decode import warning_header
from frontend.state import FrontendState


async def tokenize(request: Request, state: FrontendState) -> HTTPResponse:
    job = TokenizeJob(request.body, is_strict=state.config.strict_requests)
    with state.counted():
        return _response(await state.preparation.run(job), state)


async def detokenize(request: Request, state: FrontendState) -> HTTPResponse:
    job = DetokenizeJob(request.body, is_strict=state.config.strict_requests)
    with state.counted():
        return _response(await state.preparation.run(job), state)


def _response(answer: Answer, state: FrontendState) -> HTTPResponse:
    state.model_name(answer.model)
    return HTTPResponse(answer.json, headers=warning_header(answer.unknown_fields), content_type="application/json")


async def tokenizer_info(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response(state.tokenizer_info)
