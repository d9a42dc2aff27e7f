"""The tools of a request: checked, for the template to present, and for the parser to know."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from frontend.errors import bad_request
from frontend.grammars.request_grammar import CallRules
from frontend.grammars.tool_calls import bound_tool
from frontend.json_schema import check_schema
from frontend.protocol.chat import Tool

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

ToolChoice = str | dict[str, Any] | None


def template_tools(tools: list[Tool] | None, tool_choice: ToolChoice) -> list[dict[str, Any]] | None:
    """The tools that a template shall present, if any. Raises a 400 for what is wrong with them."""
    _check_tools(tools or [])
    _check_choice(tools or [], tool_choice)
    if not tools or tool_choice == "none":
        return None
    plain: list[dict[str, Any]] = msgspec.to_builtins(tools)
    for tool in plain:
        tool["function"].pop("strict", None)  # a word for the server, which no model has read in a tool
    return plain


def tool_schemas(tools: list[Tool] | None, tool_choice: ToolChoice) -> Mapping[str, Mapping[str, Any]]:
    """Of the tools that may be called: name to the schema of the parameters."""
    if tool_choice == "none":
        return {}
    return {tool.function.name: tool.function.parameters or {} for tool in tools or []}


def is_named(tool_choice: ToolChoice) -> bool:
    """Whether it names the one function that is to be called."""
    return isinstance(tool_choice, dict)


def call_rules(tools: list[Tool] | None, tool_choice: ToolChoice, parallel_tool_calls: bool) -> CallRules:
    """What a grammar has to know of a request's tools, which are checked already."""
    callable_tools = [] if tool_choice == "none" else tools or []
    if isinstance(tool_choice, dict):
        callable_tools = [tool for tool in callable_tools if tool.function.name == _named(tool_choice)]
    functions = [tool.function for tool in callable_tools]
    return CallRules(
        tools=[bound_tool(each.name, each.parameters, is_strict=bool(each.strict)) for each in functions],
        is_forced=tool_choice == "required" or is_named(tool_choice),
        many=parallel_tool_calls and not is_named(tool_choice),
    )


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


def _check_choice(tools: list[Tool], tool_choice: ToolChoice) -> None:
    if tool_choice in (None, "auto", "none"):
        return
    if isinstance(tool_choice, dict):
        name = _named(tool_choice)
        if name not in {tool.function.name for tool in tools}:
            raise bad_request(f"tool_choice names {name[:128]!r}, which is not among the tools.", "tool_choice")
    elif tool_choice != "required":
        raise bad_request("tool_choice must be 'auto', 'none', 'required' or name a function.", "tool_choice")
    elif not tools:
        raise bad_request("tool_choice 'required' must come with tools.", "tool_choice")


def _named(tool_choice: dict[str, Any]) -> str:
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if tool_choice.get("type") != "function" or not isinstance(name, str):
        raise bad_request(
            "tool_choice must be 'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}}.",
            "tool_choice",
        )
    return name
