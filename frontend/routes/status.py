"""GET /health (this process lives), /ready (requests get on) and /version."""

import importlib.metadata

from sanic import Request
from sanic.response import HTTPResponse

from engine_core.ipc.messages import PROTOCOL_VERSION
from frontend.responses import json_response
from frontend.state import STALL_SECONDS, FrontendState


async def health(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response({"status": "ok"})


async def ready(request: Request, state: FrontendState) -> HTTPResponse:
    refusal = state.not_ready()
    if refusal is not None:
        raise refusal
    silence = state.seconds_without_progress()
    status = 200 if silence < STALL_SECONDS else 503
    answer = {
        "status": "ready" if status == 200 else "stalled",
        "progress": state.progress,
        "open_requests": state.client.num_open_requests,
        "seconds_without_progress": round(silence, 1),
    }
    return json_response(answer, status)


async def version(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response({"version": importlib.metadata.version("quire"), "protocol_version": PROTOCOL_VERSION})
