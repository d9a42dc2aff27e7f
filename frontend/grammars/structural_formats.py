"""The formats of a structural tag as requests have them."""

from typing import Any

import msgspec

from frontend.grammars.client_parts import WrongStructure
from frontend.protocol.decode import from_validation

_NOT_HERE = (
    "qwen_xml_parameter",
    "token",
    "exclude_token",
    "any_tokens",
    "token_triggered_tags",
    "token_dispatch",
)


class _Format(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of formats within it each is decoded when its turn comes, so that errors know where they are."""


class ConstStringFormat(_Format, tag="const_string"):
    value: str


class JsonSchemaFormat(_Format, tag="json_schema"):
    json_schema: Any
    style: str = "json"
    any_order: bool = False


class RegexFormat(_Format, tag="regex"):
    pattern: str


class GrammarFormat(_Format, tag="grammar"):
    grammar: str


class AnyTextFormat(_Format, tag="any_text"):
    excludes: list[str] = []
    max_chars: int | None = None
    max_tokens: int | None = None


class SequenceFormat(_Format, tag="sequence"):
    elements: list[Any]


class OrFormat(_Format, tag="or"):
    elements: list[Any]


class OptionalFormat(_Format, tag="optional"):
    content: Any


class PlusFormat(_Format, tag="plus"):
    content: Any


class StarFormat(_Format, tag="star"):
    content: Any


class RepeatFormat(_Format, tag="repeat"):
    content: Any
    min: int
    max: int


class TagFormat(_Format, tag="tag"):
    begin: str
    content: Any
    end: str | list[str]


class TriggeredTagsFormat(_Format, tag="triggered_tags"):
    triggers: list[str]
    tags: list[Any]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []


class TagsWithSeparatorFormat(_Format, tag="tags_with_separator"):
    tags: list[Any]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


class DispatchFormat(_Format, tag="dispatch"):
    rules: list[tuple[str, Any]]
    loop: bool = True
    excludes: list[str] = []


AnyFormat = (
    ConstStringFormat
    | JsonSchemaFormat
    | RegexFormat
    | GrammarFormat
    | AnyTextFormat
    | SequenceFormat
    | OrFormat
    | OptionalFormat
    | PlusFormat
    | StarFormat
    | RepeatFormat
    | TagFormat
    | TriggeredTagsFormat
    | TagsWithSeparatorFormat
    | DispatchFormat
)
_NAMES = tuple(one.__struct_config__.tag for one in AnyFormat.__args__)


class _Structure(msgspec.Struct, kw_only=True):
    begin: str
    schema: Any = True
    end: str


class OlderForm(msgspec.Struct, kw_only=True):
    """Instead of a format."""

    structures: list[_Structure]
    triggers: list[str]


def read_format(value: Any, place: str) -> AnyFormat:
    """Raises a 400."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise WrongStructure(place, "must be a format: an object with a type.")
    if isinstance(kind, str) and kind in _NOT_HERE:
        raise WrongStructure(f"{place}.type", f"{kind!r} is not supported. Those that are: {', '.join(_NAMES)}.")
    if kind not in _NAMES:
        raise WrongStructure(f"{place}.type", f"must be one of {', '.join(_NAMES)}.")
    try:
        return msgspec.convert(value, AnyFormat)
    except msgspec.ValidationError as error:
        raise from_validation(error, place) from error
