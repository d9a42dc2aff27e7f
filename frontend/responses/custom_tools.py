"""Custom tools: their input is a text. A model sees a function with one argument, which is that text."""

from collections.abc import Iterable
from typing import Any

import msgspec

from frontend.errors import bad_request
from frontend.grammars.tool_calls import InputGrammar
from frontend.protocol.chat import FunctionDefinition
from frontend.protocol.responses import CustomToolFormat, ResponseTool

_INPUT = "input"
_SYNTAXES = {"lark": "Lark grammar", "regex": "regular expression"}


class _Arguments(msgspec.Struct):
    input: str


_arguments = msgspec.json.Decoder(_Arguments)


def as_function(tool: ResponseTool, name: str, where: str) -> FunctionDefinition:
    """What the model is shown. A regular expression binds the input as its schema does, a Lark grammar as
    `input_grammars` has it."""
    schema: dict[str, Any] = {"type": "string"}
    description, strict = tool.description, None
    if grammar := _grammar(tool, f"{where}.format"):
        described = f"The input has to match this {_SYNTAXES[grammar.syntax or '']}:\n{grammar.definition}"
        description = f"{description}\n\n{described}" if description else described
        strict = True
        if grammar.syntax == "regex":
            schema["pattern"] = f"^(?:{grammar.definition})$"
    parameters = {
        "type": "object",
        "properties": {_INPUT: schema},
        "required": [_INPUT],
        "additionalProperties": False,
    }
    return FunctionDefinition(name=name, description=description, parameters=parameters, strict=strict)


def custom_names(tools: Iterable[ResponseTool] | None) -> frozenset[str]:
    return frozenset(tool.name or "" for tool in tools or () if tool.is_custom)


def input_grammars(tools: Iterable[ResponseTool] | None) -> dict[str, InputGrammar]:
    """The Lark grammars of inputs, by the names of their tools, which have been checked."""
    return {
        tool.name or "": InputGrammar(wanted.definition or "", f"tools[{index}].format")
        for index, tool in enumerate(tools or ())
        if tool.is_custom and (wanted := _grammar(tool, f"tools[{index}].format")) and wanted.syntax == "lark"
    }


def input_of(arguments: str) -> str:
    """The text in a call's arguments; all of them where the model wrote something else."""
    try:
        return _arguments.decode(arguments).input
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments


def arguments_of(text: str) -> str:
    return msgspec.json.encode(_Arguments(text)).decode()


def _grammar(tool: ResponseTool, where: str) -> CustomToolFormat | None:
    """The format, if it asks for more than text. Raises a 400."""
    wanted = tool.format
    if not isinstance(wanted, CustomToolFormat) or wanted.type == "text":
        return None
    if wanted.type != "grammar":
        raise bad_request(f"{where}.type must be 'text' or 'grammar', not {wanted.type[:64]!r}.", f"{where}.type")
    if wanted.syntax not in _SYNTAXES:
        message = f"{where}.syntax must be 'lark' or 'regex', not {str(wanted.syntax)[:64]!r}."
        raise bad_request(message, f"{where}.syntax")
    if not wanted.definition:
        raise bad_request(f"{where}.definition must be given.", f"{where}.definition")
    return wanted
