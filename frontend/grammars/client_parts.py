"""Schemas, patterns and grammars as clients write them, checked in their form."""

from typing import Any

import msgspec

from frontend.json_schema import check_schema


class WrongStructure(ValueError):
    """What a client asked for cannot be had; `field` is where, from `structured_outputs` on. `code`: the error's."""

    def __init__(self, field: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def decoded(value: Any, where: str) -> Any:
    """The value that a JSON text stands for; other values are taken as they are."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WrongStructure(where, f"must be JSON: {error}.") from error


def json_schema(value: Any, where: str) -> dict[str, Any] | bool:
    """A schema, or its text, checked in its form."""
    schema = decoded(value, where)
    check_schema(schema, where)
    assert isinstance(schema, dict | bool)
    return schema


def lark_pattern(regex: str, where: str) -> str:
    """A regular expression as Lark writes it, with slashes around it."""
    if not regex:
        raise WrongStructure(where, "must not be empty.")
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(regex, 'd')}/"
