"""How calls are bound: what a format's grammar is made of. Each format says in its own file how its calls go."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from frontend.grammars.builder import GrammarBuilder
from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.engine_schema import NotHonoured, Schema
from frontend.grammars.lark_in_json import lark_in_json
from frontend.grammars.schema_rules import assertions, required_of

_NAMED = frozenset(("type", "properties", "required", "additionalProperties"))
"""What a format honours that has named arguments only."""


class CannotBind(ValueError):
    """A tool's schema cannot be expressed in a format; the message is the end of a sentence about the schema."""


class InputGrammar(msgspec.Struct, frozen=True):
    """What the one argument of a tool has to be, a text."""

    lark: str
    field: str
    """Of the request."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool that may be called."""

    name: str
    parameters: Mapping[str, Any]
    """A JSON schema of an object."""
    is_strict: bool
    input_grammar: InputGrammar | None = None

    @property
    def is_lenient(self) -> bool:
        """The schema of a tool that is not strict is advice: what of it cannot be honoured is left out."""
        return not self.is_strict

    def named(self) -> tuple[Mapping[str, Any], Collection[str]]:
        """The properties and those that are required, for a format that has named arguments only. Raises
        `CannotBind`."""
        properties, required = self.parameters.get("properties", {}), self.parameters.get("required", ())
        if self.input_grammar is not None:
            raise WrongStructure(
                self.input_grammar.field,
                "must not have the syntax 'lark' with this model, whose format of calls has no JSON around the "
                "arguments; 'regex' may do.",
            )
        if self.is_strict and not (
            assertions(self.parameters).keys() <= _NAMED and required_of(self.parameters) <= properties.keys()
        ):
            raise CannotBind("cannot be honoured in this model's format of calls, which has named properties only")
        return {name: schema for name, schema in properties.items() if schema is not False}, required

    def arguments(self, builder: GrammarBuilder) -> str:
        """All of them, as JSON. Raises `CannotBind`, and `WrongStructure` about a grammar of the input."""
        if self.input_grammar is not None:
            name, text = self.bound_input(builder, self.input_grammar)
            begin = f'{{"{name}": '
            return f"{builder.text(begin)} {text} {builder.text('}')}"
        return self.value(builder, self.parameters)

    def bound_input(self, builder: GrammarBuilder, grammar: InputGrammar) -> tuple[str, str]:
        """The name of the one argument, and its text within quotes. Raises `WrongStructure`."""
        (name,) = self.parameters["properties"]
        text = builder.lark(lark_in_json(grammar.lark, f"{grammar.field}.definition"))
        quote = builder.text('"')
        return name, f"{quote} {text} {quote}"

    def value(self, builder: GrammarBuilder, schema: Schema, **options: Any) -> str:
        """JSON of a part of the parameters. Raises `CannotBind`."""
        try:
            return builder.json(schema, within=self.parameters, is_lenient=self.is_lenient, **options)
        except NotHonoured as error:
            raise CannotBind(f"cannot be bound: in {self.name!r}, {error.path.lstrip('.') or 'it'} {error}") from error


def bound_tool(
    name: str, parameters: Mapping[str, Any] | None, is_strict: bool, input_grammar: InputGrammar | None = None
) -> BoundTool:
    if parameters is None:
        return BoundTool(name, {"type": "object", "properties": {}, "additionalProperties": False}, is_strict)
    return BoundTool(name, {"type": "object", **parameters}, is_strict, input_grammar)


def json_calls(builder: GrammarBuilder, tools: Sequence[BoundTool], key: str) -> str:
    """One call as a JSON object; `key`: under which the arguments stand."""
    calls = []
    for tool in tools:
        arguments = tool.arguments(builder)
        head = f'{{"name": {builder.text(tool.name)}, "{key}": '
        calls.append(f"{builder.text(head)} {arguments} {builder.text('}')}")
    return builder.any_of(calls)


def repeated(call: str, separator: str, many: bool) -> str:
    """A call, or several with a separator between."""
    return f"{call} ({separator} {call})*" if many else call


def tagged_arguments(builder: GrammarBuilder, tool: BoundTool, tag: Callable[[str], str], end: str) -> str:
    """Arguments one by one, in the order of the schema's properties, texts without quotes. `tag(name)`: what stands
    before a value; `end`: the text after it."""
    properties, required = tool.named()
    arguments = []
    for name, schema in properties.items():
        argument = f"{tag(name)} {_bare_value(builder, tool, schema, end)}"
        arguments.append(argument if name in required else f"({argument})?")
    return " ".join(arguments)


def _bare_value(builder: GrammarBuilder, tool: BoundTool, schema: Any, end: str) -> str:
    """One value and the text after it."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
            return f"{builder.any_of([builder.text(choice) for choice in choices])} {builder.marker(end)}"
        if tool.is_strict and assertions(schema).keys() - {"type"}:
            raise CannotBind("cannot be honoured in this model's format of calls, where texts have no quotes")
        return builder.anything_until(end)
    return f"{tool.value(builder, schema)} {builder.marker(end)}"
