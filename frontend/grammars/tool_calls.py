"""How calls are bound: what a format's grammar is made of. Each format says in its own file how its calls go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend.grammars.builder import GrammarBuilder


class CannotBind(ValueError):
    """A tool's schema cannot be expressed in a format; the message is the end of a sentence about the schema."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool that may be called."""

    name: str
    parameters: Mapping[str, Any]
    """A JSON schema of an object."""
    is_strict: bool

    @property
    def is_lenient(self) -> bool:
        """The schema of a tool that is not strict is advice: what of it cannot be honoured is left out."""
        return not self.is_strict


def bound_tool(name: str, parameters: Mapping[str, Any] | None, is_strict: bool) -> BoundTool:
    if parameters is None:
        return BoundTool(name, {"type": "object", "properties": {}, "additionalProperties": False}, is_strict)
    return BoundTool(name, {"type": "object", **parameters}, is_strict)


def json_calls(builder: GrammarBuilder, tools: Sequence[BoundTool], key: str) -> str:
    """One call as a JSON object; `key`: under which the arguments stand."""
    calls = []
    for tool in tools:
        arguments = builder.json(tool.parameters, is_lenient=tool.is_lenient)
        head = f'{{"name": {builder.text(tool.name)}, "{key}": '
        calls.append(f"{builder.text(head)} {arguments} {builder.text('}')}")
    return builder.any_of(calls)


def repeated(call: str, separator: str, many: bool) -> str:
    """A call, or several with a separator between."""
    return f"{call} ({separator} {call})*" if many else call


def tagged_arguments(builder: GrammarBuilder, tool: BoundTool, tag: Callable[[str], str], end: str) -> str:
    """Arguments one by one, in the order of the schema's properties, texts without quotes. `tag(name)`: what stands
    before a value; `end`: the text after it."""
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    unknown = set(tool.parameters) - _PLAIN_KEYWORDS
    if tool.is_strict and (unknown or not set(required) <= set(properties)):
        raise CannotBind("cannot be honoured in this model's format of calls, which has named properties only")
    arguments = []
    for name, schema in properties.items():
        argument = f"{tag(name)} {_bare_value(builder, tool, schema, end)}"
        arguments.append(argument if name in required else f"({argument})?")
    return " ".join(arguments)


_PLAIN_KEYWORDS = frozenset(
    (
        "type",
        "properties",
        "required",
        "additionalProperties",
        "$defs",
        "definitions",
        "title",
        "description",
        "$schema",
    )
)
_ANNOTATIONS = frozenset(("type", "title", "description", "default", "examples"))


def _bare_value(builder: GrammarBuilder, tool: BoundTool, schema: Any, end: str) -> str:
    """One value and the text after it."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        choices = schema.get("enum")
        if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
            return f"{builder.any_of([builder.text(choice) for choice in choices])} {builder.marker(end)}"
        if tool.is_strict and set(schema) - _ANNOTATIONS:
            raise CannotBind("cannot be honoured in this model's format of calls, where texts have no quotes")
        return builder.anything_until(end)
    if isinstance(schema, Mapping):
        shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        schema = {**schema, **shared}
    return f"{builder.json(schema, is_lenient=tool.is_lenient)} {builder.marker(end)}"
