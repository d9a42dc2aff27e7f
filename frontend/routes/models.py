"""GET /v1/models and /v1/models/{id}."""

from urllib.parse import unquote

from sanic import Request
from sanic.response import HTTPResponse

from frontend.json_response import json_response
from frontend.protocol.status import ModelCard, ModelList
from frontend.state import FrontendState


async def list_models(request: Request, state: FrontendState) -> HTTPResponse:
    return json_response(ModelList(data=[_card(name, state) for name in state.config.served_model_names]))


async def get_model(request: Request, state: FrontendState, model_id: str) -> HTTPResponse:
    return json_response(_card(state.model_name(unquote(model_id)), state))


def _card(name: str, state: FrontendState) -> ModelCard:
    config = state.config
    return ModelCard(
        id=name, created=state.created, root=config.served_model_names[0], max_model_len=config.max_model_len
    )
