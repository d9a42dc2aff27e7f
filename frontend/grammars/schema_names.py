"""`propertyNames` of a JSON schema in other keywords, where there are such."""

from collections.abc import Mapping
from typing import Any

from frontend.grammars.schema_rules import CannotHonour, assertions, required_of, types_of


def apply_names(schema: dict[str, Any], names: Any) -> None:
    """Changes `schema`, which has `propertyNames` no more, so that its properties have such names. `names`: with no
    reference in it. Raises `CannotHonour`."""
    rules = assertions({"type": "string", **(names if isinstance(names, Mapping) else {})})
    if names is False or "string" not in types_of(rules):
        schema["maxProperties"] = 0
        return
    del rules["type"]
    if not rules:
        return
    if schema.get("patternProperties"):
        raise CannotHonour("propertyNames", "cannot be honoured beside patternProperties")
    if rules.keys() <= {"enum", "const"}:
        _allow_only(schema, [rules["const"]] if "const" in rules else rules["enum"])
    elif schema.get("properties") or required_of(schema):
        raise CannotHonour("propertyNames", "cannot be honoured beside properties unless it is an enum")
    elif rules.keys() == {"pattern"}:
        _match(schema, rules["pattern"])
    elif rules.keys() <= {"minLength", "maxLength"}:
        _match(schema, rf"^(?s:.){{{rules.get('minLength', 0)},{rules.get('maxLength', '')}}}$")
    else:
        raise CannotHonour("propertyNames", "can be an enum, a pattern or lengths alone")


def _allow_only(schema: dict[str, Any], names: list[Any]) -> None:
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    schema["properties"] = {name: inner if name in names else False for name, inner in known.items()} | {
        name: other for name in names if isinstance(name, str) and name not in known
    }
    schema["additionalProperties"] = False


def _match(schema: dict[str, Any], pattern: str) -> None:
    schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
    schema["additionalProperties"] = False
