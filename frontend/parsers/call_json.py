"""Calls that are written as JSON, and values of arguments that are not."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType


class _Call(msgspec.Struct):
    """Models name the arguments in either way."""

    name: str
    arguments: Raw | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET


_one = msgspec.json.Decoder(_Call)
_many = msgspec.json.Decoder(list[_Call])
_object = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_anything = msgspec.json.Decoder(Any)
_MALFORMED = (msgspec.DecodeError, UnicodeError, RecursionError)

Calls = list[tuple[str, str]]
"""Names and arguments."""


def calls_of(text: str) -> Calls | None:
    """The calls in an object or an array of objects; None when it is anything else."""
    try:
        decoded = _many.decode(text) if text.startswith("[") else [_one.decode(text)]
    except _MALFORMED:
        return None
    calls: Calls = []
    for call in decoded:
        raw = call.parameters if isinstance(call.arguments, UnsetType) else call.arguments
        arguments = "{}" if isinstance(raw, UnsetType) else arguments_of(bytes(raw).decode())
        if not call.name or arguments is None:
            return None
        calls.append((call.name, arguments))
    return calls or None


def arguments_of(text: str) -> str | None:
    """The arguments as a JSON object. Some models write it as JSON in a string, and none as null."""
    text = text.strip()
    try:
        if text.startswith('"'):
            text = _text.decode(text).strip()
        if text in ("", "null"):
            return "{}"
        _object.decode(text)
    except _MALFORMED:
        return None
    return text


def object_of(values: Mapping[str, Any]) -> str:
    """Arguments that were read one by one."""
    return msgspec.json.encode(values).decode()


def value_of(text: str, schema: Any) -> Any:
    """An argument that was written without JSON's quotes, as the type that its schema names."""
    types = _types_of(schema)
    if types == {"string"}:
        return text
    try:
        value = _anything.decode(text)
    except _MALFORMED:
        bare = text.strip()
        if bare in ("True", "False") and "boolean" in types:
            return bare == "True"
        return None if bare == "None" and "null" in types else text
    # A text that happens to be JSON stays a text where the schema wants one and not this.
    return text if "string" in types and _type_of(value) not in types else value


def _types_of(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", ())
    types = {named} if isinstance(named, str) else {name for name in named if isinstance(name, str)}
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types |= _types_of(choice)
    for value in schema.get("enum", ()):
        types.add(_type_of(value))
    return types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "null"
    return "array" if isinstance(value, list) else "object"
