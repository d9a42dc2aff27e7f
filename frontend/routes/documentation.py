"""GET /openapi.json and /docs: the API's description, for programs and as a page that needs no other host."""

from functools import lru_cache
from pathlib import Path

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from frontend.openapi import describe_api
from frontend.state import FrontendState

_PAGE = Path(__file__).parents[1] / "docs_page.html"
_PAGE_POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


async def openapi(request: Request, state: FrontendState) -> HTTPResponse:
    return HTTPResponse(openapi_json(bool(state.config.api_key_digests)), content_type="application/json")


async def page(request: Request, state: FrontendState) -> HTTPResponse:
    return HTTPResponse(
        _page(), content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _PAGE_POLICY}
    )


@lru_cache
def openapi_json(wants_keys: bool) -> bytes:
    """Made at the start, for it takes 10 ms."""
    return msgspec.json.encode(describe_api(wants_keys))


@lru_cache
def _page() -> bytes:
    return _PAGE.read_bytes()
