"""JSON schemas: a keyword is honoured, says nothing, or is refused by its place; what fits validates once parsed."""

import contextlib
import itertools
import json
import random
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.engine_schema import EngineSchema, NotHonoured
from frontend.grammars.schema_numbers import bounds
from frontend.grammars.schema_rules import CannotHonour
from tests.e2e.json_validator import is_valid
from tests.frontend.grammars.formats import fits, matcher_of

TEXT: Any = {"type": "string"}
OPEN: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED: Any = {**OPEN, "required": ["a"], "additionalProperties": False}


def schema_matcher(schema: Any, *, is_lenient: bool = False) -> LLMatcher:
    builder = GrammarBuilder(lambda _: None)
    return matcher_of(builder.build(builder.json(schema, is_lenient=is_lenient)))


@cache
def _known(schema: str) -> LLMatcher:
    return schema_matcher(json.loads(schema))


def takes(schema: Any, text: str) -> bool:
    return fits(_known(json.dumps(schema)), text)


SAYS_NOTHING: dict[str, list[Any]] = {
    # Annotations of JSON Schema, its older drafts and OpenAPI, and what nobody knows.
    "title": ["x"],
    "description": ["x"],
    "default": [1, None, {"not": {}}],
    "examples": [[1]],
    "example": [1],
    "deprecated": [True],
    "readOnly": [True],
    "writeOnly": [True],
    "$comment": ["x"],
    "$schema": ["https://spec.openapis.org/oas/3.1/dialect/base", "mine", "http://json-schema.org/schema#"],
    "$id": ["https://example.com/a"],
    "id": ["a"],
    "$anchor": ["a"],
    "$dynamicAnchor": ["a"],
    "$recursiveAnchor": [True],
    "$vocabulary": [{}],
    "$defs": [{"a": {"not": {"type": "string"}}}],
    "definitions": [{"a": {"uniqueItems": True}}],
    "contentMediaType": ["text/html"],
    "contentEncoding": ["base64"],
    "contentSchema": [{"type": "object"}],
    "discriminator": [{"propertyName": "kind"}],
    "externalDocs": [{"url": "x"}],
    "xml": [{"name": "x"}],
    "nullable": [True, False],
    "enumNames": [["a"]],
    "markdownDescription": ["x"],
    "x-order": [1],
    "x-guidance": [{"whitespace_flexible": False, "what": 1}],
    "anything": [{"not": {}}],
    # Assertions that hold of every text.
    "format": ["password", "path", "int32", "byte", "binary", "uri-reference", "iri", "regex", "idn-email", "what"],
    "minLength": [0, 0.0],
    "not": [False],
    "if": [{"const": "a"}, True],
    "then": [{"const": "a"}],
    "else": [False],
    # Assertions about values of other types.
    "uniqueItems": [True, False],
    "contains": [{}],
    "minContains": [1],
    "maxContains": [1],
    "unevaluatedItems": [False],
    "additionalItems": [False],
    "items": [{"type": "integer"}, [{"type": "integer"}]],
    "prefixItems": [[False]],
    "minItems": [3],
    "maxItems": [0],
    "properties": [{"a": False}],
    "patternProperties": [{"(": {}}],
    "additionalProperties": [False],
    "unevaluatedProperties": [False],
    "propertyNames": [False],
    "required": [["a"]],
    "minProperties": [3],
    "maxProperties": [0],
    "dependentRequired": [{"a": ["b"]}],
    "dependentSchemas": [{"a": False}],
    "dependencies": [{"a": ["b"]}],
    "minimum": [5],
    "maximum": [-5],
    "exclusiveMinimum": [True],
    "exclusiveMaximum": [0],
    "multipleOf": [7],
}
"""Beside `type: string`."""


@pytest.mark.parametrize("keyword", SAYS_NOTHING)
def test_what_says_nothing_of_a_text(keyword: str) -> None:
    for value in SAYS_NOTHING[keyword]:
        schema = {**TEXT, keyword: value}
        assert takes(schema, '"any \\"text\\" é"'), schema
        assert takes(schema, '"a\\u001bb"'), schema
        assert not takes(schema, "1"), schema


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, ["[1, 1]"], []),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1, 2]"]),
        ({"type": "array", "contains": {"const": 1}, "minContains": 0}, ["[]", "[2]"], []),
        ({"type": "array", "items": {"const": 1}, "minContains": 2}, ["[1]"], []),
        ({"type": "array", "items": [TEXT], "additionalItems": False}, ['["a"]', "[]"], ['["a", 1]']),
        ({"type": "array", "items": [TEXT], "additionalItems": {"const": 1}}, ['["a", 1]'], ['["a", 2]']),
        ({"type": "array", "items": {"const": 1}, "additionalItems": False}, ["[1, 1]"], []),
        ({"type": "array", "prefixItems": [TEXT], "unevaluatedItems": False}, ['["a"]'], ['["a", 1]']),
        ({"type": "array", "maxItems": 2.0, "items": {"const": 1}}, ["[1, 1]"], ["[1, 1, 1]"]),
        ({**OPEN, "unevaluatedProperties": False}, ['{"a": 1}'], ['{"a": 1, "b": 1}']),
        ({**OPEN, "unevaluatedProperties": {}}, ['{"a": 1, "b": 1}'], []),
        ({**CLOSED, "unevaluatedProperties": False, "$ref": "#/$defs/x", "$defs": {"x": {}}}, ['{"a": 1}'], []),
        ({**OPEN, "propertyNames": TEXT}, ['{"a": 1, "b": 1}'], []),
        ({**OPEN, "propertyNames": True}, ['{"a": 1, "b": 1}'], []),
        ({**OPEN, "propertyNames": {"enum": ["a", "b"]}}, ['{"a": 1, "b": "x"}', "{}"], ['{"c": 1}', '{"a": "x"}']),
        ({**OPEN, "propertyNames": {"const": "b"}}, ['{"b": 1}', "{}"], ['{"a": 1}']),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xy": 1}', "{}"], ['{"y": 1}']),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"xy": 1}'], ['{"xyz": 1}']),
        ({"type": "object", "propertyNames": False}, ["{}"], ['{"a": 1}']),
        ({"type": "object", "propertyNames": {"type": "integer"}}, ["{}"], ['{"a": 1}']),
        (
            {
                "type": "object",
                "propertyNames": {"$ref": "#/$defs/E"},
                "additionalProperties": {"type": "integer"},
                "$defs": {"E": {"type": "string", "enum": ["a"]}},
            },
            ['{"a": 1}'],
            ['{"a": "x"}', '{"b": 1}'],
        ),
        ({**CLOSED, "dependentRequired": {"a": ["a"]}}, ['{"a": 1}'], []),
        ({**CLOSED, "dependentRequired": {}, "dependencies": {"a": {}}, "dependentSchemas": {}}, ['{"a": 1}'], []),
        ({**OPEN, "required": ["a"], "dependentRequired": {"a": ["b"]}}, ['{"a": 1, "b": 2}'], ['{"a": 1}']),
        ({**CLOSED, "minProperties": 1, "maxProperties": 3}, ['{"a": 1}'], ["{}"]),
        ({**OPEN, "additionalProperties": False, "minProperties": 1}, ['{"a": 1}'], ["{}"]),
        ({**OPEN, "required": ["a"], "minProperties": 2}, ['{"a": 1, "b": 2}'], ['{"a": 1}', '{"a": 1, "a": 2}']),
        ({**CLOSED, "if": {"required": ["a"]}, "then": {}, "else": True}, ['{"a": 1}'], []),
        ({"properties": {"a": {"not": {}}, "b": TEXT}, "type": "object"}, ['{"b": "x"}'], ['{"a": 1}']),
        ({**OPEN, "additionalProperties": {"not": {}}}, ['{"a": 1}'], ['{"b": 1}']),
        # Formats: those that are known hold.
        ({**TEXT, "format": "date"}, ['"2024-02-29"'], ['"x"']),
        ({**TEXT, "format": "uri", "enum": ["/a"]}, ['"/a"'], ['"/b"']),
        ({"format": "int32"}, ['"x"', "1"], []),
        # Numbers.
        ({"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}, ["0", "-9"], ["9" * 17]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["0", "-9"], ["9" * 20]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, ["0", "9" * 18], ["-1", "9" * 20]),
        ({"type": "integer", "maximum": 2**60 + 1}, [str(2**60)], [str(2**60 + 2), str(2**60 + 100)]),
        ({"type": "integer", "exclusiveMaximum": 2**60}, [str(2**60 - 128)], [str(2**60)]),
        ({"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, ["0.5"], ["9" * 40]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0"]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": False}, ["0"], ["-1"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.001"], ["0", "0.0", "0.6"]),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5"], ["0", "-0", "-0.0"]),
        # One of several.
        ({"oneOf": [TEXT, {"type": "null"}]}, ['"x"', "null"], ["1"]),
        ({"oneOf": [{"const": 1}, {"const": 2}, {"enum": ["a", True]}]}, ["1", "2", "true"], ["3"]),
        ({"oneOf": [*({"const": index} for index in range(200)), TEXT, CLOSED]}, ["1", '"x"', '{"a":1}'], ["200"]),
        (
            {
                "oneOf": [
                    {"type": "null"},
                    *(
                        {"type": "object", "properties": {"k": {"const": f"k{index}"}}, "required": ["k"]}
                        for index in range(100)
                    ),
                ]
            },
            ["null", '{"k":"k99"}'],
            ['{"k":"k100"}'],
        ),
        ({"oneOf": [{"$ref": "#/$defs/o"}, {"type": "null"}], "$defs": {"o": CLOSED}}, ["null", '{"a": 1}'], ["{}"]),
        (
            {
                "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
                "$defs": {
                    kind: {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
                    for kind in ("cat", "dog")
                },
            },
            ['{"kind": "cat"}', '{"kind": "dog", "more": 1}'],
            ['{"kind": "cow"}', "{}"],
        ),
        (
            {
                "oneOf": [CLOSED, {"type": "object", "required": ["b"]}],
                "anyOf": [{"required": ["b"]}, {"properties": {"a": {"const": 1}}}],
                "type": "object",
            },
            ['{"a": 1}', '{"b": 2}'],
            ['{"a": 2}'],
        ),
        # References.
        ({"$ref": "#/components/schemas/A", "components": {"schemas": {"A": TEXT}}}, ['"x"'], ["1"]),
        ({"$ref": "#/$defs/A<B> C", "$defs": {"A<B> C": TEXT}}, ['"x"'], ["1"]),
        ({"$ref": "#/$defs/A%3CB%3E~1C", "$defs": {"A<B>/C": TEXT}}, ['"x"'], ["1"]),
        ({"$ref": "#x", "$defs": {"A": {"$anchor": "x", **TEXT}}}, ['"x"'], ["1"]),
        ({"$ref": "a", "$id": "https://e.com/r", "$defs": {"A": {"$id": "a", **TEXT}}}, ['"x"'], ["1"]),
        ({"$ref": "https://e.com/a", "$id": "https://e.com/r", "$defs": {"A": {"$id": "a", **TEXT}}}, ['"x"'], ["1"]),
        (
            {"$ref": "a", "$defs": {"A": {"$id": "a", "$ref": "#/$defs/B", "$defs": {"B": TEXT}}, "B": {"const": 1}}},
            ['"x"'],
            ["1"],
        ),
        ({"$dynamicRef": "#x", "$defs": {"A": {"$dynamicAnchor": "x", **TEXT}}}, ['"x"'], ["1"]),
        ({"properties": {"next": {"$recursiveRef": "#"}}, "type": "object"}, ['{"next": {}}'], ['{"next": 1}']),
        (
            {"$ref": "#/$defs/A", "$dynamicRef": "#/$defs/B", "$defs": {"A": TEXT, "B": {"enum": ["b", 1]}}},
            ['"b"'],
            ["1"],
        ),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": TEXT}}, ['{"a": "x"}'], ['{"a": 1}']),
    ],
)
def test_what_fits(schema: Any, inside: list[str], outside: list[str]) -> None:
    for text in inside:
        assert takes(schema, text), text
    for text in outside:
        assert not takes(schema, text), text


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "array", "uniqueItems": True}, ".uniqueItems"),
        ({"type": "array", "contains": {"const": 1}}, ".contains"),
        ({"type": "array", "allOf": [{"items": TEXT}], "unevaluatedItems": False}, ".unevaluatedItems"),
        ({"properties": {"a": {"not": {"type": "string"}}}}, ".properties.a.not"),
        ({"anyOf": [{"if": {}, "then": {"const": 1}}]}, ".anyOf[0].if"),
        ({"dependentSchemas": {"a": False}}, ".dependentSchemas"),
        ({"dependentRequired": {"a": ["b"]}}, ".dependentRequired"),
        ({"dependencies": {"a": TEXT}}, ".dependencies"),
        ({"allOf": [OPEN], "unevaluatedProperties": False}, ".unevaluatedProperties"),
        ({"propertyNames": {"format": "uuid"}}, ".propertyNames"),
        ({"properties": {"a": {}}, "propertyNames": {"maxLength": 3}}, ".propertyNames"),
        ({"minProperties": 2}, ".minProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ".oneOf"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ".oneOf"),
        ({"oneOf": [{"type": "object", "required": [f"p{index}"]} for index in range(9)]}, ".oneOf"),
        ({"oneOf": [{"const": index % 50} for index in range(99)]}, ".oneOf"),
        ({"items": {"minLength": -1}}, ".items.minLength"),
        ({"maxItems": "5"}, ".maxItems"),
        ({"minimum": "5"}, ".minimum"),
        ({"type": "integer", "minimum": 1e30}, ".minimum"),
        ({"multipleOf": 0}, ".multipleOf"),
        ({"pattern": 5}, ".pattern"),
        ({"$ref": "#/$defs/nowhere"}, ".$ref"),
        ({"items": {"$ref": "https://example.com/a.json"}}, ".items.$ref"),
        ({"$ref": "http://["}, ".$ref"),
        ({"$dynamicRef": "#x", "a": {"$anchor": "x"}, "b": {"$anchor": "x"}}, ".$dynamicRef"),
        ({"$ref": "#/a", "a": {"properties": []}}, ".$defs.d0.properties"),
        ({"not": {"title": "anything"}}, ""),
        (False, ""),
    ],
)
def test_what_cannot_be_honoured_is_named(schema: Any, path: str) -> None:
    with pytest.raises(NotHonoured) as caught:
        GrammarBuilder(lambda _: None).json(schema)
    assert caught.value.path == path


KEYWORDS = sorted({*SAYS_NOTHING, "type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "pattern", "$ref"})
ODD_VALUES = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2.5, 1e300, 2**70, "", "a", "string", "object", "#", "#/a", "#a", "("]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=600)
@given(st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), ODD_VALUES, max_size=6), st.booleans())
def test_whatever_a_schema_is_it_is_taken_or_refused(schema: Any, is_lenient: bool) -> None:
    """With whatever values its keywords have."""
    with contextlib.suppress(NotHonoured):
        written = EngineSchema(schema, is_lenient=is_lenient).schema
        assert json.loads(json.dumps(written)) == written


def test_advice_that_cannot_be_honoured_is_left_out() -> None:
    properties = {
        "tags": {"type": "array", "items": {"const": 1}, "uniqueItems": True},
        "count": {"type": "integer", "minimum": 1e30, "maximum": 2e30},
        "code": {"type": "string", "pattern": "^(a)\\1$"},
        "one": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    }
    matcher = schema_matcher({"type": "object", "properties": properties, "minProperties": 3}, is_lenient=True)
    tokens = list(b'{"tags": [1, 1], "count": 5, "code": "b", "one": 1}')
    assert matcher.try_consume_tokens(tokens) == len(tokens)


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
    rng, matcher, text = random.Random(seed), _known(json.dumps(schema)).deep_copy(), bytearray()
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
