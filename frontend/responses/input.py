"""`/v1/responses`: its request as the chat request that means the same."""

from typing import Any

from frontend.errors import ApiError, bad_request
from frontend.protocol.chat import (
    AllowedTools,
    ChatCompletionRequest,
    ChatMessage,
    FunctionDefinition,
    NamedFunction,
    Tool,
    ToolChoice,
    ToolReference,
)
from frontend.protocol.responses import (
    FunctionChoice,
    InputItem,
    OutputItem,
    ResponsesRequest,
    ResponseTool,
    TextFormat,
)
from frontend.responses.conversation import Conversation, is_reference
from frontend.responses.custom_tools import as_function

LOGPROBS_INCLUDED = "message.output_text.logprobs"
_WITHOUT_EFFECT = frozenset(("reasoning.encrypted_content",))
_MAX_METADATA = 16
_OWN_NAMES = (
    ("max_tokens", "max_output_tokens"),
    ("prompt", "input"),
    ("messages", "input"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
)
_CHOICES = ("auto", "none", "required")
_TOOL_TYPES = ("function", "custom")


def check_response_request(asked: ResponsesRequest) -> None:
    """Raises a 400 for what is wrong here or not supported."""
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise bad_request(f"max_output_tokens must be at least 1, not {asked.max_output_tokens}.", "max_output_tokens")
    if asked.background and asked.store is False:
        raise bad_request("background must not come with store: false: nobody could fetch the answer.", "background")
    if asked.response_format is not None:
        raise bad_request("response_format is not supported here: use text.format.", "response_format")
    if asked.truncation not in (None, "disabled"):
        raise bad_request("truncation must be 'disabled': nothing is left out of a conversation.", "truncation")
    if asked.conversation is not None:
        raise bad_request("conversation is not supported: use previous_response_id.", "conversation")
    if asked.prompt is not None:
        raise bad_request("prompt is not supported: use input and instructions.", "prompt")
    if asked.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs is not supported here: use /v1/chat/completions.", "prompt_logprobs")
    if asked.use_beam_search:
        raise bad_request("use_beam_search is not supported here: use /v1/chat/completions.", "use_beam_search")
    for index, name in enumerate(asked.include or ()):
        if name != LOGPROBS_INCLUDED and name not in _WITHOUT_EFFECT:
            raise bad_request(f"include must not have {name[:64]!r}, which there is not.", f"include[{index}]")
    if len(asked.metadata or ()) > _MAX_METADATA:
        raise bad_request(f"metadata must have at most {_MAX_METADATA} entries.", "metadata")


def add_new_input(conversation: Conversation, asked: ResponsesRequest, referenced: dict[str, OutputItem]) -> None:
    """What the request says, behind what came before. `referenced`: the items that it names by their ids."""
    if isinstance(asked.input, str):
        conversation.add_input(InputItem(role="user", content=asked.input), "input")
        return
    if not asked.input:
        raise bad_request("input must not be an empty list.", "input")
    for index, item in enumerate(asked.input):
        if is_reference(item):
            conversation.add_output([referenced[item.id or ""]])
        else:
            conversation.add_input(item, f"input[{index}]")


def wants_logprobs(asked: ResponsesRequest) -> bool:
    return bool(asked.top_logprobs) or LOGPROBS_INCLUDED in (asked.include or ())


def as_chat(asked: ResponsesRequest, messages: list[ChatMessage]) -> ChatCompletionRequest:
    """`messages`: the whole conversation."""
    with_logprobs = wants_logprobs(asked)
    shared = {name: getattr(asked, name) for name in asked.__struct_fields__ if name in _SHARED}
    if asked.thinking_token_budget is None and asked.reasoning is not None:
        shared["thinking_token_budget"] = asked.reasoning.max_tokens
    return ChatCompletionRequest(
        messages=messages,
        max_tokens=asked.max_output_tokens,
        logprobs=with_logprobs,
        top_logprobs=asked.top_logprobs if with_logprobs else None,
        tools=[_chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ())] or None,
        tool_choice=_chat_tool_choice(asked.tool_choice),
        response_format=None if asked.text is None else _response_format(asked.text.format),
        reasoning_effort=None if asked.reasoning is None else asked.reasoning.effort,
        **shared,
    )


def own_names(error: ApiError) -> ApiError:
    """An error about a chat's field as one about this endpoint's field."""
    param = error.param or ""
    renamed = own_name(param)
    return error if renamed == param else error.renamed(renamed)


def own_name(param: str) -> str:
    """This endpoint's name of a chat's field."""
    if param.startswith(("tools[", "tool_choice.")):
        return param.replace(".allowed_tools", "", 1).replace(".function", "", 1)
    for chats, ours in _OWN_NAMES:
        if param == chats or param.startswith((f"{chats}.", f"{chats}[")):
            # Messages were counted from the beginning of the conversation, which the request does not have.
            return ours if ours == "input" else ours + param[len(chats) :]
    return param


def _chat_tool(tool: ResponseTool, where: str) -> Tool:
    if tool.type not in _TOOL_TYPES:
        raise bad_request(
            f"{where}.type must be 'function' or 'custom', not {tool.type[:64]!r}: no tools run on this server.",
            f"{where}.type",
        )
    if tool.name is None:
        raise bad_request(f"{where}.name must be given.", f"{where}.name")
    if tool.is_custom:
        return Tool(type="function", function=as_function(tool, tool.name, where))
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _chat_tool_choice(choice: str | FunctionChoice | None) -> str | ToolChoice | None:
    """What names functions stands one level deeper in a chat's request."""
    if not isinstance(choice, FunctionChoice):
        return choice
    if choice.type in _TOOL_TYPES and choice.name is not None:
        return ToolChoice(type="function", function=NamedFunction(name=choice.name))
    if choice.type != "allowed_tools":
        raise bad_request(
            f"tool_choice must be one of {', '.join(_CHOICES)}, {{'type': 'function' or 'custom', 'name': ...}} or "
            "{'type': 'allowed_tools', 'mode': ..., 'tools': [...]}.",
            "tool_choice",
        )
    for name in ("mode", "tools"):
        if getattr(choice, name) is None:
            raise bad_request(f"tool_choice.{name} must be given with type 'allowed_tools'.", f"tool_choice.{name}")
    tools = [
        ToolReference(
            type="function" if each.type == "custom" else each.type,
            function=None if each.name is None else NamedFunction(name=each.name),
        )
        for each in choice.tools or ()
    ]
    return ToolChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=choice.mode or "", tools=tools))


def _response_format(wanted: TextFormat) -> dict[str, Any] | None:
    if wanted.type == "text":
        return None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    named = {"name": wanted.name, "description": wanted.description, "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": {key: value for key, value in named.items() if value is not None}}


# Fields of the same name and meaning.
_SHARED = frozenset(ResponsesRequest.__struct_fields__) & frozenset(ChatCompletionRequest.__struct_fields__) - {
    "stream",
    "stream_options",
    "top_logprobs",
    "tools",
    "tool_choice",
    "store",
    "metadata",
    "response_format",
}
