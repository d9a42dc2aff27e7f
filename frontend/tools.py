"""The tools of a request: checked, for the template to present, and for the parser to know."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from frontend.errors import bad_request
from frontend.grammars.request_grammar import CallRules
from frontend.grammars.tool_calls import InputGrammar, bound_tool
from frontend.json_schema import check_schema
from frontend.protocol.chat import CALL_MODES, Tool, ToolChoice, ToolReference

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_CHOICES = (
    "'auto', 'none', 'required', {'type': 'function', 'function': {'name': ...}} or "
    "{'type': 'allowed_tools', 'allowed_tools': {'mode': ..., 'tools': [...]}}"
)


@dataclass(frozen=True, slots=True)
class CallableTools:
    """What a request says of which tools are called."""

    tools: Sequence[Tool]
    """Those that may be called."""
    is_forced: bool = False
    """Whether there must be a call."""
    is_named: bool = False
    """Whether the one function to call is named."""
    is_restricted: bool = False
    """Whether they were allowed by name: others are seen by the model and never called."""

    @property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to the schema of the parameters."""
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools}

    def rules(self, parallel_tool_calls: bool, input_grammars: Mapping[str, InputGrammar] | None = None) -> CallRules:
        """What a grammar has to know of them. `input_grammars`: by the name of the tool."""
        inputs = input_grammars or {}
        functions = [tool.function for tool in self.tools]
        return CallRules(
            tools=[
                bound_tool(each.name, each.parameters, bool(each.strict), inputs.get(each.name)) for each in functions
            ],
            is_forced=self.is_forced,
            many=parallel_tool_calls and not self.is_named,
            is_restricted=self.is_restricted,
        )


def template_tools(tools: list[Tool] | None, tool_choice: str | ToolChoice | None) -> list[dict[str, Any]] | None:
    """The tools that a template shall present, if any. Raises a 400 for what is wrong with them."""
    _check_tools(tools or [])
    callable_tools(tools, tool_choice)
    if not tools or tool_choice == "none":
        return None
    plain: list[dict[str, Any]] = msgspec.to_builtins(tools)
    for tool in plain:
        tool["function"].pop("strict", None)  # a word for the server, which no model has read in a tool
    return plain


def callable_tools(tools: list[Tool] | None, tool_choice: str | ToolChoice | None) -> CallableTools:
    """Those of the request's tools that may be called. Raises a 400 for what is wrong with the choice."""
    tools = tools or []
    if isinstance(tool_choice, ToolChoice):
        return _of_choice(tools, tool_choice)
    if tool_choice in (None, "auto"):
        return CallableTools(tools)
    if tool_choice == "none":
        return CallableTools([])
    if tool_choice != "required":
        raise bad_request(f"tool_choice must be {_CHOICES}.", "tool_choice")
    if not tools:
        raise bad_request("tool_choice 'required' must come with tools.", "tool_choice")
    return CallableTools(tools, is_forced=True)


def _check_tools(tools: list[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"tools must be at most {MAX_TOOLS}, not {len(tools)}.", "tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        function, where = tool.function, f"tools[{index}].function"
        if not _NAME.fullmatch(function.name):
            raise bad_request(
                f"{where}.name must have 1 to 128 letters, digits, underscores, dots and hyphens.", f"{where}.name"
            )
        if function.name in names:
            raise bad_request(f"tools must not have two functions of the name {function.name!r}.", f"{where}.name")
        names.add(function.name)
        if function.parameters is not None:
            _check_parameters(function.parameters, f"{where}.parameters")


def _check_parameters(parameters: dict[str, Any], where: str) -> None:
    if parameters.get("type", "object") != "object":
        raise bad_request(f"{where}.type must be 'object': a function's arguments have names.", f"{where}.type")
    check_schema(parameters, where)


def _of_choice(tools: Sequence[Tool], choice: ToolChoice) -> CallableTools:
    by_name = {tool.function.name: tool for tool in tools}
    if choice.type == "function" and choice.function is not None:
        name = choice.function.name
        if name not in by_name:
            raise bad_request(f"tool_choice names {name[:128]!r}, which is not among the tools.", "tool_choice")
        return CallableTools([by_name[name]], is_forced=True, is_named=True)
    if choice.type != "allowed_tools":
        raise bad_request(f"tool_choice must be {_CHOICES}.", "tool_choice")
    where, allowed = "tool_choice.allowed_tools", choice.allowed_tools
    if allowed is None:
        raise bad_request(f"{where} must be given with type 'allowed_tools'.", where)
    if allowed.mode not in CALL_MODES:
        raise bad_request(
            f"{where}.mode must be {' or '.join(map(repr, CALL_MODES))}, not {allowed.mode[:64]!r}.", f"{where}.mode"
        )
    if not allowed.tools:
        raise bad_request(f"{where}.tools must name at least one of the tools.", f"{where}.tools")
    named: dict[str, Tool] = {}
    for index, reference in enumerate(allowed.tools):
        name = _name_of(reference, f"{where}.tools[{index}]")
        param = f"{where}.tools[{index}].function.name"
        if name not in by_name:
            raise bad_request(f"{param} is {name[:128]!r}, which is not among the tools.", param)
        if name in named:
            raise bad_request(f"{param} must not be {name!r} once more: each tool is named once.", param)
        named[name] = by_name[name]
    return CallableTools(list(named.values()), is_forced=allowed.mode == "required", is_restricted=True)


def _name_of(reference: ToolReference, where: str) -> str:
    if reference.type != "function":
        raise bad_request(f"{where}.type must be 'function', not {reference.type[:64]!r}.", f"{where}.type")
    if reference.function is None:
        raise bad_request(f"{where}.function.name must be given.", f"{where}.function.name")
    return reference.function.name
