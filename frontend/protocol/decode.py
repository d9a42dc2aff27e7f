"""JSON bodies and query strings to typed requests. Everything wrong with one becomes a 400 that names the field."""

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from frontend.errors import ApiError, bad_request
from frontend.protocol.malformed import malformed_field

MAX_LISTED_FIELDS = 16

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_MISSING = re.compile(r"^Object missing required field `([^`]+)`")
_FIELD_FIRST = re.compile(r"^([a-z_]+) must ")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_objects: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decoders: dict[type, tuple[msgspec.json.Decoder, msgspec.json.Decoder]] = {}


def decode_body(body: bytes, kind: type[T], *, strict: bool) -> tuple[T, list[str]]:
    """The request and the names of its fields that nobody knows, which `strict` refuses."""
    exact, lenient = _decoders_of(kind)
    try:
        try:
            return exact.decode(body), []
        except msgspec.ValidationError:
            # Rare: a field that is unknown or wrong. Only now it costs further passes to tell which.
            request = lenient.decode(body)
            names = _objects.decode(body).keys()
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        field = malformed_field(body)
        where = "" if field is None else f" in {field!r}"
        reason = str(error).rstrip(".")
        raise bad_request(f"The body is not valid JSON{where}: {reason}.", field, "invalid_json") from error
    unknown = [name for name in names if name not in kind.__struct_encode_fields__]
    if unknown and strict:
        listed = ", ".join(repr(name) for name in unknown[:MAX_LISTED_FIELDS])
        raise bad_request(f"Unknown fields: {listed}.", param=unknown[0], code="unknown_field")
    return request, unknown


def decode_query(values: Mapping[str, list[str]], kind: type[T]) -> T:
    """What stands behind the path; of a name that is given twice the first value counts."""
    named = {name: values[name][0] for name in kind.__struct_encode_fields__ if name in values}
    try:
        return msgspec.convert(named, kind, strict=False)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error


def _decoders_of(kind: type[T]) -> tuple[msgspec.json.Decoder[T], msgspec.json.Decoder[T]]:
    """One that refuses unknown fields, so that most bodies are parsed once, and one that skips them."""
    decoders = _decoders.get(kind)
    if decoders is None:
        exact = msgspec.defstruct(kind.__name__, [], bases=(kind,), kw_only=True, forbid_unknown_fields=True)
        decoders = _decoders[kind] = (msgspec.json.Decoder(exact), msgspec.json.Decoder(kind))
    return decoders


def from_validation(error: msgspec.ValidationError | ValueError, prefix: str = "") -> ApiError:
    """msgspec's sentence about a wrong value, with the field's path taken out of it; our own for a missing one."""
    message = str(error)
    path = prefix
    found = _PATH.search(message)
    if found:
        path = ".".join(part for part in (prefix, found.group(1)) if part)
        message = message[: found.start()]
    missing = _MISSING.search(message)
    field_first = _FIELD_FIRST.search(message)
    if missing:
        path = ".".join(part for part in (path, missing.group(1)) if part)
        return bad_request(f"{path} must be given.", param=path)
    if field_first and not path:
        path = field_first.group(1)
    if path and not field_first:
        message = f"{path}: {message}"
    return bad_request(message.rstrip(".") + ".", param=path or None)


def warning_header(unknown: list[str]) -> dict[str, str]:
    """The header that tells a client which of its fields had no effect."""
    # Names come from outside: only such as cannot break out of a header are repeated in it.
    listed = [name if _SAFE_NAME.fullmatch(name) else "(unprintable)" for name in unknown[:MAX_LISTED_FIELDS]]
    return {"Warning": f'299 quire "Ignored unknown fields: {", ".join(listed)}"'} if listed else {}
