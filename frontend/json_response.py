"""Plain HTTP answers."""

from typing import Any

import msgspec
from sanic.response import HTTPResponse


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    """Structs and plain values as JSON."""
    return HTTPResponse(msgspec.json.encode(value), status, headers=headers, content_type="application/json")
