"""GET /metrics: owned by the engine core, so that every frontend answers the same."""

from sanic import Request
from sanic.response import HTTPResponse

from frontend.client import EngineError
from frontend.errors import from_engine
from frontend.state import FrontendState


async def metrics(request: Request, state: FrontendState) -> HTTPResponse:
    try:
        text = await state.client.utility("metrics")
    except EngineError as error:
        raise from_engine(error) from error
    return HTTPResponse(text, content_type="text/plain; version=0.0.4; charset=utf-8")
