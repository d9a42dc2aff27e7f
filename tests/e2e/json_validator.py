"""Whether a value satisfies a JSON schema, for the keywords that the tests use; any other keyword is an error."""

import math
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
    match keyword:
        case "$defs" | "title" | "description" | "required" if keyword != "required":
            return True
        case "required":
            return not isinstance(value, dict) or set(wanted) <= set(value)
        case "$ref":
            target = root
            for part in wanted.removeprefix("#/").split("/") if wanted != "#" else ():
                target = target[part]
            return is_valid(value, target, root)
        case "type":
            return any(_has_type(value, name) for name in (wanted if isinstance(wanted, list) else [wanted]))
        case "enum":
            return value in wanted
        case "const":
            return bool(value == wanted)
        case "anyOf":
            return any(is_valid(value, one, root) for one in wanted)
        case "properties":
            return not isinstance(value, dict) or all(
                is_valid(value[name], inner, root) for name, inner in wanted.items() if name in value
            )
        case "additionalProperties":
            assert wanted is False
            return not isinstance(value, dict) or set(value) <= set(schema["properties"])
        case "items":
            return not isinstance(value, list) or all(is_valid(one, wanted, root) for one in value)
        case "minItems":
            return not isinstance(value, list) or len(value) >= wanted
        case "maxItems":
            return not isinstance(value, list) or len(value) <= wanted
        case "maxLength":
            return not isinstance(value, str) or len(value) <= wanted
        case "minimum":
            return not _has_type(value, "number") or value >= wanted
        case "maximum":
            return not _has_type(value, "number") or value <= wanted
    raise AssertionError(f"the validator has no keyword {keyword}")


def _has_type(value: Any, name: str) -> bool:
    if name in _TYPES:
        return isinstance(value, _TYPES[name])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return name == "number" or (math.isfinite(value) and value == int(value))
