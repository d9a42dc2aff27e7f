"""A frontend with one endpoint more: `GET /invented/<name>`. Started like `python -m frontend`."""

import sys

import msgspec
from sanic import Request
from sanic.response import HTTPResponse

from frontend import app, openapi, routes
from frontend.__main__ import main
from frontend.json_response import json_response
from frontend.state import FrontendState


class Greeting(msgspec.Struct, kw_only=True):
    text: str


async def greet(request: Request, state: FrontendState, name: str) -> HTTPResponse:
    return json_response(Greeting(text=f"Hello {name}"))


ROUTE = routes.Route(("GET",), "/invented/<name>", f"{__name__}:greet", "A greeting", Greeting)

if __name__ == "__main__":
    app.ROUTES = openapi.ROUTES = (*routes.ROUTES, ROUTE)
    sys.exit(main())
