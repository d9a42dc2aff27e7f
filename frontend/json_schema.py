"""Whether a JSON schema of a request is one: what every use of it relies on, not what it means."""

from typing import Any

from frontend.errors import bad_request

MAX_DEPTH = 64
_TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
_MANY_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_TEXTS = ("$ref", "$dynamicRef", "$recursiveRef", "pattern", "format")
_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")


def check_schema(schema: Any, where: str) -> None:
    """Raises a 400 that names the place."""
    _check(schema, where, 0)


def _check(schema: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise bad_request(f"{where} is nested more than {MAX_DEPTH} levels deep.", where)
    check_form(schema, where)
    if isinstance(schema, bool):
        return
    for key in _MANY_BY_NAME:
        for name, inner in schema.get(key, {}).items():
            _check(inner, f"{where}.{key}.{name[:64]}", depth + 1)
    for key in _MANY:
        for index, inner in enumerate(schema.get(key, [])):
            _check(inner, f"{where}.{key}[{index}]", depth + 1)
    for key in _ONE:
        if key in schema and not (key == "items" and isinstance(schema[key], list)):
            _check(schema[key], f"{where}.{key}", depth + 1)


def check_form(schema: Any, where: str) -> None:
    """The same of one schema without those within it."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise bad_request(f"{where} must be a JSON schema: an object or a boolean.", where)
    for key in _MANY_BY_NAME:
        if not isinstance(schema.get(key, {}), dict):
            raise bad_request(f"{where}.{key} must be an object of schemas.", f"{where}.{key}")
    for key in _MANY:
        if not isinstance(schema.get(key, []), list):
            raise bad_request(f"{where}.{key} must be an array of schemas.", f"{where}.{key}")
    types = schema.get("type", "null")
    named = types if isinstance(types, list) else [types]
    if not named or not all(isinstance(name, str) and name in _TYPES for name in named):
        raise bad_request(f"{where}.type must be one of {', '.join(sorted(_TYPES))}, or several.", f"{where}.type")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise bad_request(f"{where}.required must be an array of names.", f"{where}.required")
    if not isinstance(schema.get("enum", []), list):
        raise bad_request(f"{where}.enum must be an array.", f"{where}.enum")
    for key in _TEXTS:
        if not isinstance(schema.get(key, ""), str):
            raise bad_request(f"{where}.{key} must be a string.", f"{where}.{key}")
