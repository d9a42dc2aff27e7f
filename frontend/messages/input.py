"""`/v1/messages`: its request as the chat request that means the same."""

import re

from frontend.errors import ApiError, bad_request
from frontend.messages.conversation import chat_messages
from frontend.protocol.chat import (
    THINKING_SWITCHES,
    ChatCompletionRequest,
    FunctionDefinition,
    NamedFunction,
    Tool,
    ToolChoice,
)
from frontend.protocol.messages import CountTokensRequest, MessagesRequest, MessageToolChoice, ToolParam

_CHOICES = {"auto": "auto", "none": "none", "any": "required"}
_OWN_NAMES = {"stop": "stop_sequences", "thinking_token_budget": "thinking.budget_tokens"}
_OF_A_TOOL = re.compile(r"^(tools\[\d+\])\.function(?:\.(parameters))?")


def as_chat(asked: CountTokensRequest) -> ChatCompletionRequest:
    """Raises a 400 for what a text model cannot take. A last message of the assistant is continued, if it has any
    text."""
    choice, thinking = asked.tool_choice, asked.thinking
    messages = chat_messages(asked.messages, asked.system)
    wanted = None if asked.output_config is None else asked.output_config.format
    return ChatCompletionRequest(
        messages=messages,
        continue_final_message=asked.messages[-1].role == messages[-1].role == "assistant" or None,
        tools=[_chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ())] or None,
        tool_choice=None if choice is None else _chat_tool_choice(choice, has_tools=bool(asked.tools)),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        chat_template_kwargs=None
        if thinking is None
        else dict.fromkeys(THINKING_SWITCHES, thinking.type != "disabled"),
        response_format=(
            None
            if wanted is None
            else {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": wanted.schema, "strict": True},
            }
        ),
    )


def as_chat_to_answer(asked: MessagesRequest, *, knows_reasoning: bool) -> ChatCompletionRequest:
    """The same with what is said of the answer. `knows_reasoning`: else there is no thinking that could be bounded."""
    budget = None if asked.thinking is None else asked.thinking.budget_tokens
    if budget is not None and not 1 <= budget < asked.max_tokens:
        raise bad_request(
            f"thinking.budget_tokens must be from 1 to less than max_tokens, not {budget}.", "thinking.budget_tokens"
        )
    chat = as_chat(asked)
    chat.max_tokens = asked.max_tokens
    chat.temperature, chat.top_k, chat.top_p = asked.temperature, asked.top_k, asked.top_p
    chat.stop, chat.cache_salt = asked.stop_sequences, asked.cache_salt
    chat.thinking_token_budget = budget if knows_reasoning else None
    return chat


def own_names(error: ApiError) -> ApiError:
    """An error about a chat's field as one about this endpoint's field."""
    param = error.param or ""
    if param in _OWN_NAMES:
        return error.renamed(_OWN_NAMES[param])
    if param.startswith("response_format"):
        return error.renamed(param.replace("response_format.json_schema", "output_config.format"))
    if found := _OF_A_TOOL.match(param):
        schema = ".input_schema" if found.group(2) else ""
        return error.renamed(f"{found.group(1)}{schema}{param[found.end() :]}")
    return error


def _chat_tool(tool: ToolParam, where: str) -> Tool:
    if tool.type != "custom":
        message = f"{where}.type must be 'custom', not {tool.type[:64]!r}: this server runs no tools of its own."
        raise bad_request(message, f"{where}.type")
    if tool.input_schema is None:
        raise bad_request(f"{where}.input_schema must be given.", f"{where}.input_schema")
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _chat_tool_choice(choice: MessageToolChoice, *, has_tools: bool) -> str | ToolChoice:
    if choice.type == "any" and not has_tools:
        raise bad_request("tool_choice of type 'any' must come with tools.", "tool_choice")
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        raise bad_request("tool_choice.name must be given with type 'tool'.", "tool_choice.name")
    return ToolChoice(type="function", function=NamedFunction(name=choice.name))
