"""Calls that are written as JSON, and values of arguments that are not."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from frontend.parsers.python_values import NotPython, python_value
from frontend.parsers.scanners import CONTROL


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
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PYTHON_BEGINS = ("{", "[", "(")
_MALFORMED = (msgspec.DecodeError, UnicodeError, RecursionError)

Calls = list[tuple[str, str]]
"""Names and arguments."""


def calls_of(text: str) -> Calls | None:
    """The calls in an object or an array of objects; None when it is anything else."""
    try:
        decoded = _many.decode(text) if text.startswith("[") else [_one.decode(text)]
    except _MALFORMED:
        escaped = escape_in_strings(text)
        return None if escaped == text else calls_of(escaped)
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
        escaped = escape_in_strings(text)
        return None if escaped == text else arguments_of(escaped)
    return text


def escape_in_strings(text: str) -> str:
    """JSON with the control characters that models write into strings as JSON has them."""
    return _STRING.sub(lambda string: CONTROL.sub(lambda char: f"\\u{ord(char.group()):04x}", string.group()), text)


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
        return _python_value(text, types)
    # A text that happens to be JSON stays a text where the schema wants one and not this.
    return text if "string" in types and _type_of(value) not in types else value


def _python_value(text: str, types: set[str]) -> Any:
    """What is no JSON is read as one of the types that were asked for, or stays a text."""
    bare = text.strip()
    if bare not in ("True", "False", "None") and not (bare[:1] in _PYTHON_BEGINS and types & {"object", "array"}):
        return text
    try:
        value = python_value(bare)
    except NotPython:
        return text
    return value if _type_of(value) in types else text


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
