"""Python literals that models write where JSON is meant. Nothing is evaluated."""

import ast
import math
import re
import warnings
from typing import Any

_NAMES = {"true": True, "false": False, "null": None}
_STRING = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class NotPython(ValueError):
    """A text is none of what JSON can express."""


def parsed(text: str) -> ast.expr:
    """An expression; line breaks in its strings are read as such. Raises `NotPython`."""
    try:
        with warnings.catch_warnings():
            # Of backslashes in strings that mean nothing; they are the model's.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        escaped = _STRING.sub(lambda string: string.group().replace("\n", "\\n").replace("\r", "\\r"), text)
        if escaped == text:
            raise NotPython from error
        return parsed(escaped)


def python_value(text: str) -> Any:
    """Raises `NotPython`."""
    return value_of_node(parsed(text.strip()))


def value_of_node(node: ast.expr) -> Any:
    """A literal, with JSON's names beside Python's. Raises `NotPython`."""
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [value_of_node(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else value_of_node(key) for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise NotPython
        return {key: value_of_node(value) for key, value in zip(keys, node.values, strict=True)}
    try:
        value = ast.literal_eval(node)
    except ValueError as error:
        raise NotPython from error
    if not isinstance(value, str | int | float | None):
        raise NotPython
    if isinstance(value, float) and not math.isfinite(value):
        raise NotPython
    if isinstance(value, str) and _LONE_SURROGATE.search(value):
        raise NotPython
    return value
