"""What each keyword of a JSON schema applies to, and when it says nothing.

After JSON Schema 2020-12 (core and validation), the names that older drafts have, and OpenAPI 3.
"""

from collections.abc import Mapping
from typing import Any

FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
"""What llguidance holds a text to. Any other format is an annotation, as the standard has it."""
TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"))
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
BY_NAME = ("properties", "patternProperties")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
ONE = ("items", "additionalProperties")
NEVER = ("if", "then", "else", "not", "contains", "uniqueItems", "dependentSchemas", "dependencies")
"""What asserts something that cannot be honoured, unless it says nothing."""
IN_PLACE = ("anyOf", "oneOf", "allOf", "if", "dependentSchemas", *REFERENCES)
"""What may evaluate an object's properties or an array's items beside the schema's own keywords."""

_OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": (
        *("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems", "uniqueItems"),
        *("contains", "minContains", "maxContains"),
    ),
    "object": (
        *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("required", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"),
    ),
}
_TYPE_OF = {keyword: name for name, keywords in _OF_TYPE.items() for keyword in keywords}
_KNOWN = frozenset((*_TYPE_OF, *REFERENCES, *MANY, *NEVER, "type", "enum", "const"))


class CannotHonour(ValueError):
    """`keyword` is to blame; the message is the end of a sentence about it."""

    def __init__(self, keyword: str, message: str = "cannot be honoured") -> None:
        super().__init__(message)
        self.keyword = keyword


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have; `number` where it need not be an integer, and then `integer` too."""
    named = schema.get("type", list(TYPES))
    types = frozenset(one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str))
    return types | {"integer"} if "number" in types else types


def assertions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say something about a value of the schema's types, in their order."""
    types = types_of(schema)
    if "integer" in types:
        types |= {"number"}
    return {
        keyword: value
        for keyword, value in schema.items()
        if keyword in _KNOWN
        and _TYPE_OF.get(keyword, "any") in types | {"any"}
        and not _says_nothing(keyword, value, schema)
    }


def allows_all(schema: Any) -> bool:
    return schema is True or (isinstance(schema, Mapping) and not assertions(schema))


def _says_nothing(keyword: str, value: Any, schema: Mapping[str, Any]) -> bool:
    match keyword:
        case "format":
            return isinstance(value, str) and (value not in FORMATS or bool({"enum", "const"} & schema.keys()))
        case "uniqueItems":
            return value is False or schema.get("maxItems") in (0, 1)
        case "contains":
            return schema.get("minContains") == 0 and "maxContains" not in schema
        case "minContains" | "maxContains":
            return True  # they are about `contains`, which says it all
        case "not":
            return value is False
        case "if":
            return allows_all(schema.get("then", True)) and allows_all(schema.get("else", True))
        case "then" | "else":
            return "if" not in schema or allows_all(value)
        case "unevaluatedProperties":
            return allows_all(value) or "additionalProperties" in schema
        case "unevaluatedItems":
            return allows_all(value) or isinstance(schema.get("items"), Mapping | bool)
        case "additionalItems":
            return not isinstance(schema.get("items"), list)
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return isinstance(value, Mapping) and all(_is_given(one, schema) for one in value.values())
        case "minProperties":
            return isinstance(value, int | float) and value <= len(required_of(schema))
        case "maxProperties":
            return isinstance(value, int | float) and is_closed(schema) and value >= len(properties_of(schema))
    return False


def _is_given(dependency: Any, schema: Mapping[str, Any]) -> bool:
    """Whether what a property brings along is so anyway."""
    if isinstance(dependency, list):
        return all(name in required_of(schema) for name in dependency if isinstance(name, str))
    return allows_all(dependency)


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def required_of(schema: Mapping[str, Any]) -> set[str]:
    required = schema.get("required", ())
    return {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()


def is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether an object has no other properties than those of `properties`."""
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")
