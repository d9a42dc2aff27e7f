"""What a setting may be and what was given instead, in a user's words: msgspec's own speak of types."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import inspect

MAX_SHOWN_CHARS = 100
SECRETS = ("api_key",)
"""Settings whose values no message repeats."""


def refusal(values: Mapping[str, Any], kind: type, name: str) -> str:
    """Why `values[name]` cannot be the field `name` of the struct `kind`; of a list, what is wrong with an item."""
    hint, value = get_type_hints(kind, include_extras=True)[name], values[name]
    if isinstance(inspect.type_info(hint), inspect.ListType) and isinstance(value, list):
        (hint,) = get_args(hint)
        value = next(item for item in value if not _is_valid(item, hint))
    what = "what was given" if name in SECRETS else shown(value)
    return f"{what} is not {allowed(inspect.type_info(hint))}"


def allowed(kind: inspect.Type) -> str:
    """The values of a type, such that "x is not ..." is a sentence."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.StrType() if kind.max_length is not None:
            return f"a text of {kind.min_length or 0} to {kind.max_length} characters"
        case inspect.ListType():
            return f"{allowed(kind.item_type)} or a list of such"
        case inspect.UnionType():  # None stands for what was not said
            return " or ".join(allowed(one) for one in kind.types if not isinstance(one, inspect.NoneType))
    return "a text"


def shown(value: object) -> str:
    """A value as its user wrote it: numbers bare, which the command line brings as texts, and texts in quotes."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _is_valid(value: object, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    highest = kind.le
    if highest is None and kind.lt is not None and isinstance(kind, inspect.IntType):
        highest = kind.lt - 1
    if kind.gt is not None:
        return f" above {_plain(kind.gt)}" + ("" if highest is None else f" and up to {_plain(highest)}")
    if kind.ge is None:
        return ""
    return f" of at least {_plain(kind.ge)}" if highest is None else f" from {_plain(kind.ge)} to {_plain(highest)}"


def _plain(bound: float) -> str:
    """All digits, and no point behind a whole number."""
    return str(int(bound) if bound == int(bound) else bound)
