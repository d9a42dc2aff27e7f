"""The conversation before a stored answer as items again: `GET /v1/responses/{id}/input_items`."""

from collections.abc import Iterator
from typing import Any

from frontend.errors import bad_request
from frontend.protocol.chat import ChatMessage, ContentPart
from frontend.protocol.input_items import (
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItemList,
    InputItemsQuery,
    InputText,
    ListedItem,
    ListedMessage,
)
from frontend.protocol.responses import (
    CustomToolCallItem,
    FunctionCallItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.custom_tools import custom_names, input_of


def page_of(stored: StoredResponse, query: InputItemsQuery) -> InputItemList:
    """Raises a 400 where `after` is none of the items."""
    items = list(_items(stored))
    if query.order == "desc":
        items.reverse()
    begin = 0
    if query.after is not None:
        ids = [item.id for item in items]
        if query.after not in ids:
            raise bad_request(f"after must be the id of one of the items, not {query.after[:128]!r}.", "after")
        begin = ids.index(query.after) + 1
    page = items[begin : begin + query.limit]
    return InputItemList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=begin + len(page) < len(items),
    )


def _items(stored: StoredResponse) -> Iterator[ListedItem]:
    """First to last. They are told from the messages, so their ids are those of their places."""
    names = custom_names(stored.response.tools)
    custom_ids: set[str] = set()
    for message in stored.messages:
        for call in message.tool_calls or ():
            if call.function.name in names:
                custom_ids.add(call.id or "")
    number = 0
    place = stored.response.id.removeprefix("resp_")
    for message in stored.messages:
        for prefix, kind, fields in _parts(message, custom_ids):
            yield kind(id=f"{prefix}_{place}_{number}", **fields)
            number += 1


def _parts(message: ChatMessage, custom_ids: set[str]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Of each item of a message: what its id begins with, its type, and its other fields."""
    if message.role == "tool":
        call_id = message.tool_call_id or ""
        kind = CustomToolCallOutput if call_id in custom_ids else FunctionCallOutput
        yield "fco", kind, {"call_id": call_id, "output": "\n".join(_texts(message.content))}
        return
    if message.reasoning_content:
        reasoning = [ReasoningText(text=message.reasoning_content)]
        yield "rs", ReasoningItem, {"summary": [], "content": reasoning, "status": "completed"}
    if message.content is not None:
        part = OutputText if message.role == "assistant" else InputText
        content = [part(text=text) for text in _texts(message.content)]
        yield "msg", ListedMessage, {"role": message.role, "content": content}
    for call in message.tool_calls or ():
        shared = {"call_id": call.id, "name": call.function.name, "status": "completed"}
        if call.id in custom_ids:
            yield "ctc", CustomToolCallItem, {"input": input_of(call.function.arguments), **shared}
        else:
            yield "fc", FunctionCallItem, {"arguments": call.function.arguments, **shared}


def _texts(content: str | list[ContentPart] | None) -> list[str]:
    if isinstance(content, list):
        return [part.text or "" for part in content]
    return [content or ""]
