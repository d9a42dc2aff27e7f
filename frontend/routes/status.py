"""GET /health (this process lives), /ready (requests get on) and /version."""

from sanic import Request
from sanic.response import HTTPResponse

from engine_core.ipc.messages import ERROR_ENGINE_DEAD, PROTOCOL_VERSION
from frontend.client import EngineError
from frontend.errors import unavailable
from frontend.json_response import json_response
from frontend.protocol.status import Health, Readiness, Version
from frontend.state import STALL_SECONDS, FrontendState
from frontend.version import quire_version

ANSWER_SECONDS = 5.0
"""How long the core may take to say how it is: it answers between two steps."""


async def health(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response(Health())


async def ready(request: Request, state: FrontendState) -> HTTPResponse:
    """Requests are taken, and those that run get on: the core's step counter moves while it has work."""
    refusal = state.not_ready()
    if refusal is not None:
        raise refusal
    try:
        status = await state.client.utility("status", timeout=ANSWER_SECONDS)
    except EngineError as error:
        raise unavailable(f"The engine gives no sign of life: {error.message}", ERROR_ENGINE_DEAD) from error
    silence = state.note_progress(status["progress"], status["pending"])
    if silence >= STALL_SECONDS:
        raise unavailable(f"The engine has work and has made no step for {silence:.0f} seconds.", "engine_stalled")
    return json_response(Readiness(**status))


async def version(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response(Version(version=quire_version(), protocol_version=PROTOCOL_VERSION))
