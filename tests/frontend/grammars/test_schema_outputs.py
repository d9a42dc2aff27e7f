"""Outputs under a schema validate once they are parsed: no spelling, no number, no draw gets past it."""

import itertools
import json
import random
from decimal import Decimal
from typing import Any

import pytest

from frontend.grammars.schema_numbers import bounds
from frontend.grammars.schema_rules import CannotHonour
from tests.e2e.json_validator import is_valid
from tests.frontend.grammars.schema_matchers import known_matcher, schema_matcher, takes

TEXT: Any = {"type": "string"}
OPEN: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED: Any = {**OPEN, "required": ["a"], "additionalProperties": False}


SPELLINGS = ["a", "\\u0061", "\\u0061b", "ab", "b", "\\u0062", "\\n", "\\u000a", "\\u000A", "\\/", "/", "\\u0001"]


@pytest.mark.parametrize(
    "schema",
    [
        OPEN,
        CLOSED,
        {**OPEN, "additionalProperties": TEXT},
        {**OPEN, "patternProperties": {"^a": {"type": "integer"}}},
        {**OPEN, "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": TEXT},
        {"type": "object", "properties": {"\n": {"const": 1}, "/": {"const": 1}}, "patternProperties": {"^\\s": {}}},
        {"type": "object", "properties": {"\x01": {"const": 1}, "/": {"const": 1}}},
        {"type": "object", "required": ["a"], "additionalProperties": TEXT},
        {"type": "object", "patternProperties": {"^a": {"const": 1}}, "additionalProperties": {"const": "x"}},
        {"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": {"const": 1}},
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        {**OPEN, "required": ["a"], "minProperties": 2},
        {"allOf": [CLOSED, {"properties": {"b": True}}], "type": "object"},
        {"anyOf": [CLOSED, {"type": "object", "properties": {"b": {"const": "x"}}, "required": ["b"]}]},
    ],
)
def test_no_spelling_of_a_name_gets_past_a_schema(schema: Any) -> None:
    """All objects of up to three properties with these names, the same one twice among them."""
    num_fitting = 0
    members = [f'"{name}":{value}' for name in SPELLINGS for value in ("1", '"x"')]
    for count in range(4):
        for chosen in itertools.product(members if count < 3 else members[:10], repeat=count):
            text = f"{{{','.join(chosen)}}}"
            if takes(schema, text):
                num_fitting += 1
                assert is_valid(json.loads(text), schema), text
    assert num_fitting


REAL: dict[str, Any] = {
    "zod": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "id": {
                "type": "string",
                "format": "uuid",
                "pattern": "^([0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})$",
            },
            "count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
            "ratio": {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
            "meta": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"}},
            "kind": {"oneOf": [{"type": "string", "const": "a"}, {"type": "number", "const": 4}]},
            "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "maxItems": 2},
        },
        "required": ["id", "count", "kind", "pair"],
        "additionalProperties": False,
    },
    "openapi": {
        "type": "object",
        "title": "Order",
        "properties": {
            "id": {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1, "example": 10},
            "status": {"type": "string", "enum": ["placed", "sent"], "x-enum-varnames": ["Placed", "Sent"]},
            "shipped": {"type": "string", "format": "date-time", "nullable": True, "readOnly": True},
            "items": {
                "type": "array",
                "uniqueItems": False,
                "xml": {"wrapped": True},
                "maxItems": 2,
                "items": {"$ref": "#/components/schemas/Item<Dto>"},
            },
        },
        "required": ["id", "status"],
        "additionalProperties": False,
        "components": {
            "schemas": {
                "Item<Dto>": {
                    "type": "object",
                    "discriminator": {"propertyName": "sort"},
                    "properties": {
                        "sort": {"type": "string", "maxLength": 3},
                        "price": {"type": "number", "minimum": 0},
                    },
                    "required": ["sort"],
                    "additionalProperties": False,
                }
            }
        },
    },
    "pydantic": {
        "$defs": {
            "Cat": {
                "properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}, "age": {"type": "integer"}},
                "required": ["kind"],
                "title": "Cat",
                "type": "object",
                "additionalProperties": False,
            },
            "Dog": {
                "properties": {
                    "kind": {"const": "dog", "default": "dog", "type": "string"},
                    "owner": {"anyOf": [{"$ref": "#/$defs/Dog"}, {"type": "null"}], "default": None},
                },
                "required": ["kind"],
                "type": "object",
                "additionalProperties": False,
            },
        },
        "properties": {
            "pet": {
                "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            },
            "secret": {"format": "password", "type": "string", "writeOnly": True, "maxLength": 3},
            "where": {"anyOf": [{"format": "path", "type": "string", "maxLength": 3}, {"type": "null"}]},
            "score": {"exclusiveMinimum": 0, "exclusiveMaximum": 1, "type": "number"},
            "step": {"multipleOf": 3, "minimum": 1, "exclusiveMaximum": 10, "type": "integer"},
        },
        "required": ["pet", "score", "step"],
        "type": "object",
        "additionalProperties": False,
    },
}


def written(schema: Any, seed: int) -> str:
    """A text that the schema allows, byte by byte at random; what ends something is preferred."""
    rng, matcher, text = random.Random(seed), known_matcher(json.dumps(schema)).deep_copy(), bytearray()
    while not matcher.is_stopped() and len(text) < 3000:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if not allowed:
            break
        ends = [byte for byte in allowed if chr(byte) in '"}],:']
        byte = rng.choice(ends if ends and rng.random() < 0.6 else allowed)
        assert matcher.consume_token(byte)
        text.append(byte)
        if matcher.is_accepting() and rng.random() < 0.5:
            break
    assert matcher.is_accepting() or matcher.is_stopped(), text
    return text.decode(errors="replace")


@pytest.mark.parametrize("name", REAL)
def test_schemas_as_libraries_write_them(name: str) -> None:
    texts = {written(REAL[name], seed) for seed in range(60)}
    assert len(texts) > 20
    for text in texts:
        assert is_valid(json.loads(text), REAL[name]), text


def test_numbers_keep_to_their_bounds() -> None:
    """Bounds near one another and near numbers of few digits."""
    rng, num_fitting = random.Random(1), 0
    values = [0, 1, -1, 10, -10, 100, 0.5, -0.5, 0.1, -0.1, 0.05, 1.5, 99.99, -2.5, -2.0]
    for _ in range(600):
        schema: Any = {"type": rng.choice(["number", "number", "integer"])}
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = rng.choice(values)
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = rng.choice(values)
        texts = {"-0", "-0.0"}
        for value in list(schema.values())[1:]:
            for step in ("0", "0.1", "-0.1", "1", "-1", "0.001", "-0.001"):
                texts |= {
                    text := format(Decimal(repr(value)) + Decimal(step), "f"),
                    f"{text}0" if "." in text else f"{text}.0",
                }
        try:
            schema_matcher(schema)
        except AssertionError:
            continue  # no number is in between
        for text in texts:
            if takes(schema, text):
                num_fitting += 1
                assert is_valid(json.loads(text), schema), (schema, text)
    assert num_fitting > 1000


@pytest.mark.parametrize("bound", [2**53 + 1, 2**60 + 1, 2**63, 10**30, 0.1, -0.1, -(2**60) - 1, 5e-324])
@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
@pytest.mark.parametrize("is_integer", [False, True])
def test_a_bound_moves_inwards(bound: float, keyword: str, is_integer: bool) -> None:
    is_lower = keyword.lower().endswith("minimum")
    if (bound if is_lower else -bound) > (2**63 - 1 if is_integer else 10**17):
        with pytest.raises(CannotHonour) as caught:
            bounds({keyword: bound}, is_integer=is_integer)
        assert caught.value.keyword == keyword
        return
    ((name, value),) = bounds({keyword: bound}, is_integer=is_integer).items()
    assert float(value) == value
    assert Decimal(value) >= Decimal(bound) if is_lower else Decimal(value) <= Decimal(bound)
    assert not is_integer or ("xclusive" not in name and value % 1 == 0)
