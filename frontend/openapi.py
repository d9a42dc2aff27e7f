"""The API as an OpenAPI document, made from the routes and from the types that requests and answers really have."""

import re
from typing import Any

import msgspec

from frontend.api_keys import OPEN_PATHS
from frontend.protocol.status import ErrorBody
from frontend.routes import ROUTES, Route
from frontend.version import quire_version

_PATH_VALUE = re.compile(r"<(\w+)(?::\w+)?>")
_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "404": "There is no such model or thing.",
    "408": "The head or the body of the request came too slowly.",
    "413": "The body is too long.",
    "429": "Too many requests wait; `Retry-After` says for how long.",
    "500": "The server failed.",
    "503": "The server cannot take requests now.",
    "504": "The request's deadline has passed.",
}


def describe_api(wants_keys: bool) -> dict[str, Any]:
    """`wants_keys`: whether requests need an API key."""
    types = _types()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        path = paths.setdefault(_PATH_VALUE.sub(r"{\1}", route.path), {})
        for method in route.methods:
            path[method.lower()] = _operation(route, method, schema_of, wants_keys)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Quire", "version": quire_version()},
        "paths": paths,
        "components": {"schemas": components},
    }
    if wants_keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
    return document


def _types() -> list[Any]:
    """Every type that a schema is wanted of, once."""
    found: list[Any] = [ErrorBody]
    for route in ROUTES:
        found += [kind for kind in (route.answer, route.body, route.event, route.error) if _is_type(kind)]
    return list({id(kind): kind for kind in found}.values())


def _event_schema(data: dict[str, Any]) -> dict[str, Any]:
    """Before OpenAPI 3.2 a stream's schema describes each of its events, and an event's data is text."""
    return {
        "type": "object",
        "description": "A server-sent event. Chats and completions end with one whose data is [DONE].",
        "properties": {
            "event": {"type": "string"},
            "data": {
                "type": "string",
                "anyOf": [{"contentMediaType": "application/json", "contentSchema": data}, {"const": "[DONE]"}],
            },
        },
        "required": ["data"],
    }


def _is_type(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, str)


def _operation(route: Route, method: str, schema_of: dict[int, Any], wants_keys: bool) -> dict[str, Any]:
    """One method at one path. GET answers HEAD with the same head, which needs no words."""
    if isinstance(route.answer, str):
        content: dict[str, Any] = {route.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": schema_of[id(route.answer)]}}
    if route.event is not None:
        content["text/event-stream"] = {"schema": _event_schema(schema_of[id(route.event)])}
    error = {"application/json": {"schema": schema_of[id(route.error)]}}
    responses = {"200": {"description": "The answer.", "content": content}}
    errors = dict(_ERRORS)
    if wants_keys and route.path not in OPEN_PATHS:
        errors["401"] = "The API key is missing or wrong."
    for status, sentence in sorted(errors.items()):
        responses[status] = {"description": sentence, "content": error}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{method.lower()}_{route.handler.rsplit('.', 1)[-1].replace(':', '_')}",
        "responses": responses,
    }
    if route.path in OPEN_PATHS:
        operation["security"] = []
    if route.body is not None:
        body = {"application/json": {"schema": schema_of[id(route.body)]}}
        operation["requestBody"] = {"required": True, "content": body}
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    """What stands in the path, and what may stand behind it."""
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_VALUE.findall(route.path)
    ]
    if route.query is not None:
        _, components = msgspec.json.schema_components((route.query,))
        for name, schema in components[route.query.__name__]["properties"].items():
            parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    return parameters
