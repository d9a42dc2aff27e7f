"""A client's JSON schema in the keywords that llguidance takes, its meaning kept.

JSON Schema (drafts 4 to 2020-12, and OpenAPI's schemas) lets a schema say much that asserts nothing: annotations,
formats that nobody knows, keywords of another type than the value's, keywords whose value is the default. llguidance
refuses some of that. Here it is left out, and so is what no reference leads to. What asserts something and cannot be
honoured is refused by its place.

What is written must validate once it is parsed. A name that is written with an escape is the same name once more. So
where an object has names of its own and room for others, texts have no `\\u` escapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from frontend.errors import ApiError
from frontend.grammars.schema_changes import CHANGES
from frontend.grammars.schema_disjoint import all_disjoint
from frontend.grammars.schema_names import apply_names
from frontend.grammars.schema_references import References, Target, document_of
from frontend.grammars.schema_rules import BY_NAME, MANY, ONE, REFERENCES, CannotHonour, allows_all, assertions
from frontend.json_schema import MAX_DEPTH, check_form

MAX_PARTS = 100_000
"""Schemas within one, those that references name included."""
_NOT_REGULAR = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9bBcZ]|\[\^?\]")
"""Look-around, back references and what only JavaScript or Python has, to be found in a pattern."""

Schema = Mapping[str, Any] | bool


class NotHonoured(ValueError):
    """`path` is the place in the schema, such as `.properties.a.not`; the message is the end of a sentence about it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class EngineSchema:
    def __init__(self, schema: Schema, within: Mapping[str, Any] | None = None, *, is_lenient: bool = False) -> None:
        """`within`: the schema that references are about, by default this one. `is_lenient`: what cannot be honoured is
        left out. Raises `NotHonoured`."""
        root = within if within is not None else schema if isinstance(schema, Mapping) else {}
        self._is_lenient = is_lenient
        self._references = References(root)
        self._names: dict[int, str] = {}
        """Of schemas that references name, by their identity."""
        self._waiting: list[tuple[str, Target]] = []
        self._num_parts = 0
        self.allows_escapes = True
        """Whether a text may have `\\u` escapes, which are those of control characters."""
        written = self._written(schema, "", root, 0)
        definitions: dict[str, Any] = {}
        while self._waiting:
            name, target = self._waiting.pop()
            definitions[name] = self._written(target.schema, f".$defs.{name}", target.document, 0)
        if written is False:
            raise NotHonoured("", "cannot be honoured: it allows nothing")
        self.schema: dict[str, Any] = {} if written is True else written
        if definitions:
            self.schema["$defs"] = definitions

    def _written(self, schema: Any, path: str, document: Mapping[str, Any], depth: int) -> Any:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS or depth > MAX_DEPTH:
            raise NotHonoured(path, f"is one of more than {MAX_PARTS} schemas, or in more than {MAX_DEPTH} of them")
        _check_form(schema, path)
        if isinstance(schema, bool):
            return schema
        document = document_of(schema, document)
        own = assertions(schema)
        if "not" in own and allows_all(own["not"]):
            return False
        self._change(own, path, document)
        written: dict[str, Any] = {}
        for keyword, value in own.items():
            place = f"{path}.{keyword}"
            if keyword in REFERENCES:
                _put(written, "$ref", self._reference(value, place, document))
            elif keyword in MANY:
                inner = [self._written(one, f"{place}[{i}]", document, depth + 1) for i, one in enumerate(value)]
                _put(written, "anyOf" if keyword == "oneOf" else keyword, inner)
            elif keyword in BY_NAME:
                written[keyword] = {
                    name: self._written(one, f"{place}.{name[:64]}", document, depth + 1) for name, one in value.items()
                }
            elif keyword in ONE:
                written[keyword] = self._written(value, place, document, depth + 1)
            else:
                written[keyword] = value
        is_open = written.get("additionalProperties") is not False
        has_names, has_patterns = ("properties" in written or "required" in written), "patternProperties" in written
        self.allows_escapes &= is_open + has_names + has_patterns < 2
        return written

    def _change(self, own: dict[str, Any], path: str, document: Mapping[str, Any]) -> None:
        """Assertions that llguidance does not take, to others."""
        for change in (*CHANGES, self._patterns):
            while True:
                try:
                    change(own)
                    break
                except CannotHonour as wrong:
                    if not self._is_lenient:
                        raise NotHonoured(f"{path}.{wrong.keyword}", str(wrong)) from wrong
                    del own[wrong.keyword]
        try:
            if "propertyNames" in own:
                names = self._resolved(own.pop("propertyNames"), document)
                _check_form(names, f"{path}.propertyNames")
                apply_names(own, names)
            self._one_of(own, document)
        except CannotHonour as wrong:
            if not self._is_lenient:
                raise NotHonoured(f"{path}.{wrong.keyword}", str(wrong)) from wrong

    def _patterns(self, own: dict[str, Any]) -> None:
        """Advice that is no regular expression is left out; of a demand the engine says so."""
        if self._is_lenient and _NOT_REGULAR.search(own.get("pattern", "")):
            raise CannotHonour("pattern")

    def _one_of(self, own: dict[str, Any], document: Mapping[str, Any]) -> None:
        """It becomes `anyOf`."""

        def resolve(reference: str) -> Any:
            target = self._references.target(reference, document)
            return None if target is None else target.schema

        if not all_disjoint(own.get("oneOf", ()), resolve):
            raise CannotHonour("oneOf", "must have schemas that are seen to allow no common value; use anyOf")

    def _resolved(self, schema: Any, document: Mapping[str, Any]) -> Any:
        """What stands where a schema is a reference and nothing else."""
        for _ in range(MAX_DEPTH):
            reference = schema.get("$ref") if isinstance(schema, Mapping) else None
            target = self._references.target(reference, document) if isinstance(reference, str) else None
            if target is None:
                return schema
            schema, document = target.schema, target.document
        return schema

    def _reference(self, reference: str, place: str, document: Mapping[str, Any]) -> str:
        target = self._references.target(reference, document)
        if target is None:
            raise NotHonoured(place, f"must name a schema within this one, not {reference[:64]!r}")
        name = self._names.get(id(target.schema))
        if name is None:
            name = self._names[id(target.schema)] = f"d{len(self._names)}"
            self._waiting.append((name, target))
        return f"#/$defs/{name}"


def _check_form(schema: Any, path: str) -> None:
    try:
        check_form(schema, path)
    except ApiError as error:
        place = error.param or path
        raise NotHonoured(place, error.message.removeprefix(f"{place} ").rstrip(".")) from error


def _put(written: dict[str, Any], keyword: str, value: Any) -> None:
    """Keywords that have become the same one are all asserted."""
    if keyword == "allOf":
        written["allOf"] = written.get("allOf", []) + value
    elif keyword in written:
        written["allOf"] = [*written.get("allOf", []), {keyword: value}]
    else:
        written[keyword] = value
