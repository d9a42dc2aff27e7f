"""Bounds of numbers in a JSON schema, as llguidance can honour them: as 64-bit floats, and not arbitrarily large.

Where a bound has to change, it moves inwards: what keeps to the new one keeps to the old one.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from frontend.grammars.schema_rules import CannotHonour

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_INTEGER = 2**63 - 1
_MAX_NUMBER = 10**17
"""Of a bound of numbers that may have decimals."""
_NEXT = Fraction(1, 10**12)
"""From an exclusive bound to the inclusive one that stands for it."""


def bounds(schema: Mapping[str, Any], *, is_integer: bool) -> dict[str, int | float]:
    """The keywords of `BOUNDS` in `schema`, draft 4's boolean ones too, as bounds with the same meaning. Raises
    `CannotHonour`."""
    found: dict[str, int | float] = {}
    for name, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        keyword, value, is_exclusive = _tightest(schema, name, exclusive, sign)
        if value is None:
            continue
        if is_integer:
            value = sign * Fraction(math.floor(sign * value) + 1 if is_exclusive else math.ceil(sign * value))
            is_exclusive = False
        elif is_exclusive and value.denominator == 1:
            # llguidance allows an exclusive bound that is an integer where the other bound is less than 1 away.
            value, is_exclusive = value + sign * _NEXT, False
        limit = _MAX_INTEGER if is_integer else _MAX_NUMBER
        if sign * value > limit:
            raise CannotHonour(keyword, f"is beyond {sign * limit}, which is not supported")
        if sign * value < -limit:
            value, is_exclusive = Fraction(-sign * limit), False
        found[exclusive if is_exclusive else name] = _inwards(value, sign)
    return found


def _tightest(schema: Mapping[str, Any], name: str, exclusive: str, sign: int) -> tuple[str, Fraction | None, bool]:
    """Of a bound and the exclusive one the one that counts: its keyword, its value, whether it is exclusive."""
    own, other = schema.get(name), schema.get(exclusive)
    if isinstance(other, bool):
        return name, _fraction(name, own), other
    plain, strict = _fraction(name, own), _fraction(exclusive, other)
    if strict is None or (plain is not None and sign * plain > sign * strict):
        return name, plain, False
    return exclusive, strict, True


def _fraction(keyword: str, value: Any) -> Fraction | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CannotHonour(keyword, "must be a number")
    return Fraction(value)


def _inwards(value: Fraction, sign: int) -> int | float:
    """The next number that is a float."""
    nearest = float(value)
    if sign * Fraction(nearest) < sign * value:
        nearest = math.nextafter(nearest, sign * math.inf)
    return int(nearest) if nearest.is_integer() else nearest
