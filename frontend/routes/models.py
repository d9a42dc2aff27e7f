"""GET /v1/models and /v1/models/{id}."""

from typing import Any
from urllib.parse import unquote

from sanic import Request
from sanic.response import HTTPResponse

from frontend.responses import json_response
from frontend.state import FrontendState


async def list_models(request: Request, state: FrontendState) -> HTTPResponse:
    cards = [_card(name, state) for name in state.config.served_model_names]
    return json_response({"object": "list", "data": cards})


async def get_model(request: Request, state: FrontendState, model_id: str) -> HTTPResponse:
    return json_response(_card(state.model_name(unquote(model_id)), state))


def _card(name: str, state: FrontendState) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "quire",
        "root": state.config.served_model_names[0],
        "parent": None,
        "max_model_len": state.config.max_model_len,
    }
