"""Whether no value can satisfy two JSON schemas: then `oneOf` says no more of them than `anyOf`."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from frontend.grammars.schema_rules import is_closed, properties_of, required_of, types_of

_MAX_COMPARED = 8
"""Schemas of one `oneOf` that are compared each with each, for want of a property that tells them apart."""
_MAX_DEPTH = 4

Resolve = Callable[[str], Any]
"""From a reference to its schema; None: there is none."""


def all_disjoint(schemas: Sequence[Any], resolve: Resolve) -> bool:
    """Whether it is certain that no two of them allow the same value."""
    told_apart, others = _told_apart(schemas, resolve)
    pairs = itertools.chain(itertools.combinations(others, 2), itertools.product(others, told_apart))
    return len(others) <= _MAX_COMPARED and all(are_disjoint(one, other, resolve) for one, other in pairs)


def _told_apart(schemas: Sequence[Any], resolve: Resolve) -> tuple[list[Any], list[Any]]:
    """Those that have certain values, or objects with certain values of a property, none of them twice; the others."""
    known = [list(_conjuncts(schema, resolve)) if isinstance(schema, Mapping) else [] for schema in schemas]
    names = next((names for each in known if (names := sorted(set().union(*map(required_of, each))))), [])
    for name in (None, *names[:_MAX_COMPARED]):
        seen: set[tuple[str, Any]] = set()
        apart, others = [], []
        for schema, conjuncts in zip(schemas, known, strict=True):
            values = _values_of(conjuncts, name)
            if values is None or values & seen:
                others.append(schema)
            else:
                apart.append(schema)
                seen |= values
        if len(others) <= _MAX_COMPARED:
            return apart, others
    return [], list(schemas)


def _values_of(conjuncts: Sequence[Mapping[str, Any]], name: str | None) -> set[tuple[str, Any]] | None:
    """The values that a schema allows, or those of a property that it requires, where there are only certain ones."""
    if name is None:
        return next((values for one in conjuncts if (values := _values(one)) is not None), None)
    if not any(types_of(one) == {"object"} for one in conjuncts) or not any(
        name in required_of(one) for one in conjuncts
    ):
        return None
    inner = [properties_of(one)[name] for one in conjuncts if name in properties_of(one)]
    return next((values for one in inner if isinstance(one, Mapping) and (values := _values(one)) is not None), None)


def are_disjoint(one: Any, other: Any, resolve: Resolve, depth: int = 0) -> bool:
    """Whether that is certain."""
    if one is False or other is False:
        return True
    if depth > _MAX_DEPTH or not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    for left, right in ((one, other), (other, one)):
        for choices in (left.get("anyOf"), left.get("oneOf")):
            if isinstance(choices, list) and all(are_disjoint(each, right, resolve, depth + 1) for each in choices):
                return True
    theirs = list(_conjuncts(other, resolve))
    return any(_exclude(left, right, resolve, depth) for left in _conjuncts(one, resolve) for right in theirs)


def _conjuncts(schema: Mapping[str, Any], resolve: Resolve) -> Iterator[Mapping[str, Any]]:
    """Schemas all of which a value satisfies."""
    waiting, num_seen = [schema], 0
    while waiting and num_seen < 8:
        num_seen += 1
        one = waiting.pop()
        if not isinstance(one, Mapping):
            continue
        yield one
        if isinstance(one.get("$ref"), str):
            waiting.append(resolve(one["$ref"]))
        if isinstance(one.get("allOf"), list):
            waiting += one["allOf"]


def _exclude(one: Mapping[str, Any], other: Mapping[str, Any], resolve: Resolve, depth: int) -> bool:
    common = types_of(one) & types_of(other)
    if not common:
        return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not values & others
    for some, schema in ((values, other), (others, one)):
        if some is not None and not any(kind in types_of(schema) for kind, _ in some):
            return True
    if common != {"object"}:
        return False
    properties, others_properties = properties_of(one), properties_of(other)
    for name in required_of(one) | required_of(other):
        if name in properties and name in others_properties:
            if are_disjoint(properties[name], others_properties[name], resolve, depth + 1):
                return True
        elif (is_closed(one) and name not in properties) or (is_closed(other) and name not in others_properties):
            return True
    return False


def _values(schema: Mapping[str, Any]) -> set[tuple[str, Any]] | None:
    """With their types, where there are only certain ones, none of which has parts."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    return {(_type_of(value), value) for value in values}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return "number" if isinstance(value, float) else "null" if value is None else "string"
