"""The Sanic application: routes, limits, and the API's error shape for everything that goes wrong."""

import importlib
import logging
from collections.abc import Awaitable, Callable

import msgspec
from sanic import Request, Sanic
from sanic.exceptions import MethodNotAllowed, NotFound, PayloadTooLarge, SanicException
from sanic.response import BaseHTTPResponse, HTTPResponse
from sanic.signals import Event

from engine_core.config.engine_config import FrontendConfig
from frontend.api_keys import check_api_key
from frontend.cors import cors_headers, is_preflight
from frontend.errors import ApiError
from frontend.json_response import json_response
from frontend.preparation.asking import note_asking
from frontend.routes import ROUTES, Route
from frontend.state import FrontendState
from frontend.web_pages import check_body_type, check_host

logger = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[HTTPResponse | None]]
NEVER_SECONDS = 10.0**9
ANTHROPIC_PATH = "/v1/messages"


def build_app(state: FrontendState, hosts: frozenset[str] | None = None) -> Sanic:
    """Everything but a socket. `hosts`: the names that it answers to, see `served_hosts`."""
    app: Sanic = Sanic(
        "quire",
        dumps=lambda value: msgspec.json.encode(value).decode(),
        loads=msgspec.json.decode,
        configure_logging=False,
        env_prefix="",  # the environment has no say
    )
    app.config.AUTO_EXTEND = False
    app.config.MOTD = False
    app.config.ACCESS_LOG = False
    app.config.FALLBACK_ERROR_FORMAT = "json"
    app.config.REQUEST_MAX_SIZE = state.config.max_body_bytes
    # Generating takes as long as it takes; `http_protocol` has the deadlines for what clients send.
    app.config.RESPONSE_TIMEOUT = NEVER_SECONDS
    app.config.REQUEST_TIMEOUT = NEVER_SECONDS
    app.ctx.state = state
    for route in ROUTES:
        _add_route(app, route, state)
    for path in dict.fromkeys(route.path for route in ROUTES):
        _add_options(app, path)
    app.exception(Exception)(_answer_error)
    _check_first(app, state.config, hosts)
    if state.config.allowed_origins:
        _answer_origins(app, state.config)
    return app


def _check_first(app: Sanic, config: FrontendConfig, hosts: frozenset[str] | None) -> None:
    """Before a path or a body is looked at: who may not ask learns nothing and costs nothing."""

    async def check(request: Request) -> None:
        check_host(request.headers, hosts)
        is_free = config.allowed_origins and is_preflight(request.method, request.headers)
        if config.api_key_digests and not is_free:
            check_api_key(request.path, request.headers, config.api_key_digests)
        check_body_type(request.method, request.headers, config.allowed_origins)

    app.add_signal(check, Event.HTTP_ROUTING_BEFORE)


def _answer_origins(app: Sanic, config: FrontendConfig) -> None:
    async def add_headers(request: Request, response: BaseHTTPResponse) -> None:
        allow = response.headers.get("allow")
        response.headers.update(cors_headers(request.method, request.headers, allow, config.allowed_origins))

    app.register_middleware(add_headers, "response")


def _add_route(app: Sanic, route: Route, state: FrontendState) -> None:
    module_name, function_name = route.handler.split(":")
    handler: Handler = getattr(importlib.import_module(module_name), function_name)

    async def answer(request: Request, **path_values: str) -> HTTPResponse | None:
        # A body beyond Sanic's buffer leaves reading paused, and a paused connection does not notice a hang-up.
        if request.transport is not None:
            request.transport.resume_reading()  # type: ignore[attr-defined]
        note_asking(state.shares.key_of(request) or request.ip, len(request.body))
        return await handler(request, state, **path_values)

    app.add_route(answer, route.path, methods=_answered(route), name=_route_name(function_name, route.path))


def _add_options(app: Sanic, path: str) -> None:
    """What may be done at a path, by one route or several."""
    allowed = [method for route in ROUTES if route.path == path for method in _answered(route)] + ["OPTIONS"]

    async def answer(request: Request, **path_values: str) -> HTTPResponse:
        return HTTPResponse(status=204, headers={"Allow": ", ".join(allowed)})

    app.add_route(answer, path, methods=["OPTIONS"], name=_route_name("options", path))


def _answered(route: Route) -> list[str]:
    return [*route.methods, *(["HEAD"] if "GET" in route.methods else [])]


def _route_name(function_name: str, path: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in f"{function_name}-{path}")


def _answer_error(request: Request, exception: Exception) -> HTTPResponse:
    """The process's entry for errors: whatever a handler raises becomes an answer here."""
    if isinstance(exception, ApiError):
        error = exception
    elif isinstance(exception, PayloadTooLarge):
        message = str(exception)
        if "body" in message:
            message = f"The request's body must have at most {request.app.config.REQUEST_MAX_SIZE} bytes."
        error = ApiError(413, message, code="request_too_large")
    elif isinstance(exception, NotFound):
        error = ApiError(404, f"There is nothing at {request.path}.", code="not_found")
    elif isinstance(exception, MethodNotAllowed):
        headers = {str(name): str(value) for name, value in (exception.headers or {}).items()}
        error = ApiError(
            405, f"{request.method} is not allowed at {request.path}.", code="method_not_allowed", headers=headers
        )
    elif isinstance(exception, SanicException) and 400 <= exception.status_code < 500:
        error = ApiError(exception.status_code, str(exception))
    else:
        logger.error("%s %s failed.", request.method, request.path, exc_info=exception)
        error = ApiError(500, "The server failed to answer this request.", code="internal_error")
    body = error.anthropic_body() if request.path.startswith(ANTHROPIC_PATH) else error.body()
    return json_response(body, error.status, error.headers)
