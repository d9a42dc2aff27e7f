"""Assertions of one JSON schema that llguidance does not take, in others that it takes.

Each function changes `schema`, which has nothing but assertions, and raises `CannotHonour` where there are no others.
"""

from typing import Any

from frontend.grammars.schema_numbers import BOUNDS, bounds
from frontend.grammars.schema_rules import (
    COUNTS,
    IN_PLACE,
    NEVER,
    CannotHonour,
    is_closed,
    required_of,
    types_of,
)


def read_counts(schema: dict[str, Any]) -> None:
    """2.0 is an integer for the standard."""
    for keyword in COUNTS & schema.keys():
        value = schema[keyword]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
            raise CannotHonour(keyword, "must be an integer that is not negative")
        schema[keyword] = int(value)


def read_numbers(schema: dict[str, Any]) -> None:
    factor = schema.get("multipleOf", 1)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise CannotHonour("multipleOf", "must be a number greater than 0")
    if any(keyword in schema for keyword in BOUNDS):
        found = bounds(schema, is_integer="number" not in types_of(schema))
        for keyword in BOUNDS:
            schema.pop(keyword, None)
        schema |= found


def read_tuple(schema: dict[str, Any]) -> None:
    """The older form of `prefixItems`."""
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema["additionalItems"]
    schema.pop("additionalItems", None)


def read_unevaluated(schema: dict[str, Any]) -> None:
    """Where nothing else evaluates properties or items, these are the additional ones."""
    for keyword, other in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if keyword in schema:
            if any(each in schema for each in IN_PLACE):
                raise CannotHonour(keyword, f"cannot be honoured beside {', '.join(IN_PLACE)}; {other} can be")
            schema[other] = schema.pop(keyword)


def read_dependencies(schema: dict[str, Any]) -> None:
    """What a required property brings along is required."""
    for keyword in ("dependentRequired", "dependencies"):
        found = schema.get(keyword, {})
        if not isinstance(found, dict) or not all(map(_is_names, found.values())):
            raise CannotHonour(keyword)
        for name, names in found.items():
            if name in required_of(schema):
                schema["required"] = list(dict.fromkeys((*schema["required"], *names)))
            elif not set(names) <= required_of(schema):
                raise CannotHonour(keyword, f"cannot be honoured: {name[:64]!r} is not required")
        schema.pop(keyword, None)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def read_num_properties(schema: dict[str, Any]) -> None:
    """Additional properties may have the same name, and are one then."""
    least = schema.get("minProperties", 0)
    if is_closed(schema) and least == len(schema.get("properties", ())):
        schema["required"] = list(dict.fromkeys((*schema.get("required", ()), *schema.get("properties", ()))))
        schema.pop("minProperties", None)
    elif least > len(required_of(schema)) + 1:
        raise CannotHonour("minProperties", "cannot be more than one above the number of required properties")


def refuse_others(schema: dict[str, Any]) -> None:
    """What is left and cannot be honoured."""
    keyword = next((keyword for keyword in NEVER if keyword in schema), None)
    if keyword is not None:
        raise CannotHonour(keyword)


CHANGES = (
    read_counts,
    read_numbers,
    read_tuple,
    read_unevaluated,
    read_dependencies,
    read_num_properties,
    refuse_others,
)
