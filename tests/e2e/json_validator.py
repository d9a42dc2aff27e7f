"""Whether a value satisfies a JSON schema, for the keywords that the tests use; any other keyword is an error."""

import math
import re
from decimal import Decimal
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """`root`: the schema that references are about; by default this one."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    return all(_satisfies(value, keyword, schema, root) for keyword in schema)


def _satisfies(value: Any, keyword: str, schema: dict[str, Any], root: Any) -> bool:
    wanted = schema[keyword]
    if keyword in _ANNOTATIONS or keyword.startswith("x-"):
        return True
    for kind, rules in ((dict, _OF_OBJECTS), (list, _OF_ARRAYS), (str, _OF_STRINGS)):
        if keyword in rules:
            return not isinstance(value, kind) or rules[keyword](value, wanted, schema, root)
    if keyword in _OF_NUMBERS:
        return not _has_type(value, "number") or _OF_NUMBERS[keyword](Decimal(repr(value)), Decimal(repr(wanted)))
    match keyword:
        case "$ref":
            target = root
            for part in wanted.removeprefix("#/").split("/") if wanted != "#" else ():
                target = target[int(part) if isinstance(target, list) else part.replace("~1", "/").replace("~0", "~")]
            return is_valid(value, target, root)
        case "type":
            return any(_has_type(value, name) for name in (wanted if isinstance(wanted, list) else [wanted]))
        case "enum":
            return any(_is_equal(value, one) for one in wanted)
        case "const":
            return _is_equal(value, wanted)
        case "anyOf":
            return any(is_valid(value, one, root) for one in wanted)
        case "oneOf":
            return sum(is_valid(value, one, root) for one in wanted) == 1
        case "allOf":
            return all(is_valid(value, one, root) for one in wanted)
        case "not":
            return not is_valid(value, wanted, root)
    raise AssertionError(f"the validator has no keyword {keyword}")


def _additional(value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Names that neither `properties` nor `patternProperties` know."""
    patterns = schema.get("patternProperties", {})
    return [
        name
        for name in value
        if name not in schema.get("properties", {}) and not any(re.search(pattern, name) for pattern in patterns)
    ]


_ANNOTATIONS = frozenset(
    (
        *("$defs", "definitions", "components", "$schema", "$id", "title", "description", "default", "examples"),
        *("example", "deprecated", "nullable", "readOnly", "writeOnly", "xml", "discriminator"),
    )
)
_OF_OBJECTS: dict[str, Any] = {
    "required": lambda value, wanted, schema, root: set(wanted) <= set(value),
    "properties": lambda value, wanted, schema, root: all(
        is_valid(value[name], inner, root) for name, inner in wanted.items() if name in value
    ),
    "patternProperties": lambda value, wanted, schema, root: all(
        is_valid(value[name], inner, root)
        for pattern, inner in wanted.items()
        for name in value
        if re.search(pattern, name)
    ),
    "additionalProperties": lambda value, wanted, schema, root: all(
        is_valid(value[name], wanted, root) for name in _additional(value, schema)
    ),
    "propertyNames": lambda value, wanted, schema, root: all(is_valid(name, wanted, root) for name in value),
    "minProperties": lambda value, wanted, schema, root: len(value) >= wanted,
    "maxProperties": lambda value, wanted, schema, root: len(value) <= wanted,
    "dependentRequired": lambda value, wanted, schema, root: all(
        set(names) <= set(value) for name, names in wanted.items() if name in value
    ),
}
_OF_ARRAYS: dict[str, Any] = {
    "prefixItems": lambda value, wanted, schema, root: all(
        is_valid(one, inner, root) for one, inner in zip(value, wanted, strict=False)
    ),
    "items": lambda value, wanted, schema, root: all(
        is_valid(one, wanted, root) for one in value[len(schema.get("prefixItems", ())) :]
    ),
    "minItems": lambda value, wanted, schema, root: len(value) >= wanted,
    "maxItems": lambda value, wanted, schema, root: len(value) <= wanted,
    "uniqueItems": lambda value, wanted, schema, root: (
        not wanted or not any(_is_equal(one, other) for index, one in enumerate(value) for other in value[:index])
    ),
}
_OF_STRINGS: dict[str, Any] = {
    "minLength": lambda value, wanted, schema, root: len(value) >= wanted,
    "maxLength": lambda value, wanted, schema, root: len(value) <= wanted,
    "pattern": lambda value, wanted, schema, root: re.search(wanted.replace("$", r"\Z"), value) is not None,
    "format": lambda value, wanted, schema, root: True,
}
_OF_NUMBERS: dict[str, Any] = {
    "minimum": lambda value, wanted: value >= wanted,
    "maximum": lambda value, wanted: value <= wanted,
    "exclusiveMinimum": lambda value, wanted: value > wanted,
    "exclusiveMaximum": lambda value, wanted: value < wanted,
    "multipleOf": lambda value, wanted: value % wanted == 0,
}


def _is_equal(one: Any, other: Any) -> bool:
    """As JSON has it: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    return bool(one == other)


def _has_type(value: Any, name: str) -> bool:
    if name in _TYPES:
        return isinstance(value, _TYPES[name])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return name == "number" or (math.isfinite(value) and value == int(value))
