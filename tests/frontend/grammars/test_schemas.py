"""JSON schemas: a keyword is honoured, says nothing, or is refused by its place; what fits validates once parsed."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.engine_schema import EngineSchema, NotHonoured
from tests.frontend.grammars.schema_matchers import schema_matcher, takes

TEXT: Any = {"type": "string"}
OPEN: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED: Any = {**OPEN, "required": ["a"], "additionalProperties": False}


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


@pytest.mark.slow
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
