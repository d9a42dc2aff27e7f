"""What is served where: one line per endpoint. GET answers HEAD as well, and OPTIONS is answered everywhere."""

from typing import Any, NamedTuple

import msgspec

from frontend.protocol import chat, completions, input_items, messages, response_events, responses, status, tokenization


class Route(NamedTuple):
    methods: tuple[str, ...]
    path: str
    handler: str
    """`module:function`; it is called with Sanic's request, the `FrontendState`, and the path's values by name."""
    summary: str
    answer: Any
    """The type of the JSON that it answers with, or a media type of what is not JSON."""
    body: type | None = None
    event: Any = None
    """The type of an event, where the answer can be a stream."""
    error: type = status.ErrorBody
    query: type[msgspec.Struct] | None = None
    """What may stand behind the path."""


ROUTES = (
    Route(
        ("POST",),
        "/v1/chat/completions",
        "frontend.routes.chat_completions:create",
        "Go on with a conversation",
        chat.ChatCompletion,
        body=chat.ChatCompletionRequest,
        event=chat.ChatChunk,
    ),
    Route(
        ("POST",),
        "/v1/completions",
        "frontend.routes.completions:create",
        "Go on with a text",
        completions.Completion,
        body=completions.CompletionRequest,
        event=completions.Completion,
    ),
    Route(
        ("POST",),
        "/v1/responses",
        "frontend.routes.responses:create",
        "Answer an input, or go on after an earlier response",
        responses.Response,
        body=responses.ResponsesRequest,
        event=response_events.ResponseEvent,
    ),
    Route(
        ("GET",),
        "/v1/responses/<response_id>",
        "frontend.routes.responses:retrieve",
        "A stored response, or its events",
        responses.Response,
        event=response_events.ResponseEvent,
        query=responses.RetrieveQuery,
    ),
    Route(
        ("GET",),
        "/v1/responses/<response_id>/input_items",
        "frontend.routes.responses:list_input_items",
        "What a stored response answered",
        input_items.InputItemList,
        query=input_items.InputItemsQuery,
    ),
    Route(
        ("DELETE",),
        "/v1/responses/<response_id>",
        "frontend.routes.responses:delete",
        "Forget a stored response",
        responses.DeletedResponse,
    ),
    Route(
        ("POST",),
        "/v1/responses/<response_id>/cancel",
        "frontend.routes.responses:cancel",
        "End a response in the background",
        responses.Response,
    ),
    Route(
        ("POST",),
        "/v1/messages",
        "frontend.routes.messages:create",
        "Go on with a conversation, as Anthropic's API has it",
        messages.Message,
        body=messages.MessagesRequest,
        event=messages.MessageEvent,
        error=messages.MessagesError,
    ),
    Route(
        ("POST",),
        "/v1/messages/count_tokens",
        "frontend.routes.messages:count_tokens",
        "The length of a conversation",
        messages.TokenCount,
        body=messages.CountTokensRequest,
        error=messages.MessagesError,
    ),
    Route(("GET",), "/v1/models", "frontend.routes.models:list_models", "The served names", status.ModelList),
    Route(
        ("GET",),
        "/v1/models/<model_id:path>",
        "frontend.routes.models:get_model",
        "One served name",
        status.ModelCard,
    ),
    Route(
        ("POST",),
        "/tokenize",
        "frontend.routes.tokenization:tokenize",
        "A text or a conversation as token ids",
        tokenization.TokenizeResponse,
        body=tokenization.TokenizeRequest,
    ),
    Route(
        ("POST",),
        "/detokenize",
        "frontend.routes.tokenization:detokenize",
        "Token ids as text",
        tokenization.DetokenizeResponse,
        body=tokenization.DetokenizeRequest,
    ),
    Route(
        ("GET",),
        "/tokenizer_info",
        "frontend.routes.tokenization:tokenizer_info",
        "The tokenizer's configuration and chat template",
        dict[str, Any],
    ),
    Route(("GET",), "/health", "frontend.routes.status:health", "Whether the process lives", status.Health),
    Route(("GET",), "/ready", "frontend.routes.status:ready", "Whether requests get on", status.Readiness),
    Route(("GET",), "/version", "frontend.routes.status:version", "Versions", status.Version),
    Route(("GET",), "/metrics", "frontend.routes.metrics:metrics", "Figures for Prometheus", "text/plain"),
    Route(("GET",), "/openapi.json", "frontend.routes.documentation:openapi", "This description", dict[str, Any]),
    Route(("GET",), "/docs", "frontend.routes.documentation:page", "This description as a page", "text/html"),
)
