"""`/v1/responses`: its request as the chat request that means the same."""

from typing import Any

from frontend.errors import ApiError, bad_request
from frontend.protocol.chat import ChatCompletionRequest, ChatMessage, ContentPart
from frontend.protocol.responses import InputItem, ResponsesRequest, TextFormat

LOGPROBS_INCLUDED = "message.output_text.logprobs"
_WITHOUT_EFFECT = frozenset(("reasoning.encrypted_content",))
_MAX_METADATA = 16
_TEXT_PARTS = frozenset(("text", "input_text", "output_text"))
_FORMATS = ("text", "json_object", "json_schema")
_FORMAT_NAMES = {"response_format.json_schema": "text.format", "response_format": "text.format"}
_OWN_NAMES = {"max_tokens": "max_output_tokens", "prompt": "input", "messages": "input"}


def check_response_request(asked: ResponsesRequest) -> None:
    """Raises a 400 for what is wrong here or not supported."""
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise bad_request(f"max_output_tokens must be at least 1, not {asked.max_output_tokens}.", "max_output_tokens")
    if asked.background and asked.stream:
        raise bad_request("background must not come with stream: true: ask for the response by its id.", "background")
    if asked.background and asked.store is False:
        raise bad_request("background must not come with store: false: nobody could fetch the answer.", "background")
    if asked.text is not None and asked.text.format.type not in _FORMATS:
        raise bad_request("text.format.type must be 'text', 'json_object' or 'json_schema'.", "text.format.type")
    if asked.response_format is not None:
        raise bad_request("response_format is not supported here: use text.format.", "response_format")
    if asked.tools:
        raise bad_request("tools is not supported here: use /v1/chat/completions.", "tools")
    if asked.tool_choice not in (None, "auto", "none"):
        raise bad_request("tool_choice must be 'auto' or 'none'.", "tool_choice")
    if asked.truncation not in (None, "disabled"):
        raise bad_request("truncation must be 'disabled': nothing is left out of a conversation.", "truncation")
    if asked.conversation is not None:
        raise bad_request("conversation is not supported: use previous_response_id.", "conversation")
    if asked.prompt is not None:
        raise bad_request("prompt is not supported: use input and instructions.", "prompt")
    for index, name in enumerate(asked.include or ()):
        if name != LOGPROBS_INCLUDED and name not in _WITHOUT_EFFECT:
            raise bad_request(f"include must not have {name[:64]!r}, which there is not.", f"include[{index}]")
    if len(asked.metadata or ()) > _MAX_METADATA:
        raise bad_request(f"metadata must have at most {_MAX_METADATA} entries.", "metadata")


def input_messages(asked: ResponsesRequest) -> list[ChatMessage]:
    """The new part of the conversation."""
    if isinstance(asked.input, str):
        return [ChatMessage(role="user", content=asked.input)]
    if not asked.input:
        raise bad_request("input must not be an empty list.", "input")
    return [_message(item, f"input[{index}]") for index, item in enumerate(asked.input)]


def wants_logprobs(asked: ResponsesRequest) -> bool:
    return bool(asked.top_logprobs) or LOGPROBS_INCLUDED in (asked.include or ())


def as_chat(asked: ResponsesRequest, messages: list[ChatMessage]) -> ChatCompletionRequest:
    """`messages`: the whole conversation."""
    with_logprobs = wants_logprobs(asked)
    unsupported = {name: getattr(asked, name) for name in asked.__struct_fields__ if name in _SHARED}
    return ChatCompletionRequest(
        messages=messages,
        max_tokens=asked.max_output_tokens,
        logprobs=with_logprobs,
        top_logprobs=asked.top_logprobs if with_logprobs else None,
        response_format=None if asked.text is None else _response_format(asked.text.format),
        **unsupported,
    )


def _response_format(form: TextFormat) -> dict[str, Any]:
    """As a chat has it."""
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "json_schema": {"schema": form.schema}}


def own_names(error: ApiError) -> ApiError:
    """An error about a chat's field as one about this endpoint's field."""
    param = error.param or ""
    name = own_name(param)
    if name == param:
        return error
    message = error.message.replace(param, name) if name.startswith("text.format") else error.message
    return ApiError(error.status, message, param=name, code=error.code, headers=error.headers)


def own_name(param: str) -> str:
    """This endpoint's name of a chat's field."""
    for theirs, ours in _FORMAT_NAMES.items():
        if param.startswith(theirs):
            return ours + param[len(theirs) :]
    return _OWN_NAMES.get(param.partition("[")[0], param)


def _message(item: InputItem, where: str) -> ChatMessage:
    if item.type != "message":
        raise bad_request(f"Items of input must be messages, not {item.type[:64]!r}.", f"{where}.type")
    if item.role is None or item.role == "tool":
        raise bad_request("role must be 'user', 'assistant', 'system' or 'developer'.", f"{where}.role")
    content = item.content
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return ChatMessage(role=item.role, content=content)


def _part(part: ContentPart, where: str) -> ContentPart:
    if part.type == "refusal" and part.refusal is not None:
        return part
    if part.type not in _TEXT_PARTS or part.text is None:
        raise bad_request(f"A part of input must be text, not {part.type[:64]!r}: this model takes text only.", where)
    return ContentPart(type="text", text=part.text)


# Fields of the same name and meaning.
_SHARED = frozenset(ResponsesRequest.__struct_fields__) & frozenset(ChatCompletionRequest.__struct_fields__) - {
    "stream",
    "stream_options",
    "top_logprobs",
    "tools",
    "tool_choice",
    "store",
    "metadata",
    "reasoning",
    "response_format",
}
