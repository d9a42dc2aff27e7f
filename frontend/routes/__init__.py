"""What is served where: one line per endpoint. GET answers HEAD as well, and OPTIONS is answered everywhere."""

from typing import NamedTuple


class Route(NamedTuple):
    methods: tuple[str, ...]
    path: str
    handler: str
    """`module:function`; it is called with Sanic's request, the `FrontendState`, and the path's values by name."""


ROUTES = (
    Route(("POST",), "/v1/chat/completions", "frontend.routes.chat_completions:create"),
    Route(("POST",), "/v1/completions", "frontend.routes.completions:create"),
    Route(("GET",), "/v1/models", "frontend.routes.models:list_models"),
    Route(("GET",), "/v1/models/<model_id:path>", "frontend.routes.models:get_model"),
    Route(("POST",), "/tokenize", "frontend.routes.tokenization:tokenize"),
    Route(("POST",), "/detokenize", "frontend.routes.tokenization:detokenize"),
    Route(("GET",), "/health", "frontend.routes.status:health"),
    Route(("GET",), "/ready", "frontend.routes.status:ready"),
    Route(("GET",), "/version", "frontend.routes.status:version"),
    Route(("GET",), "/metrics", "frontend.routes.metrics:metrics"),
)
