"""The items of a stored response's input, a page at a time."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from frontend.protocol.chat import Role
from frontend.protocol.responses import CustomToolCallItem, FunctionCallItem, OutputText, ReasoningItem


class InputText(msgspec.Struct, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class ListedMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Role
    status: Literal["completed"] = "completed"
    content: list[InputText | OutputText]


class FunctionCallOutput(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str
    status: Literal["completed"] = "completed"


class CustomToolCallOutput(msgspec.Struct, kw_only=True, tag_field="type", tag="custom_tool_call_output"):
    id: str
    call_id: str
    output: str
    status: Literal["completed"] = "completed"


ListedItem = (
    ListedMessage | ReasoningItem | FunctionCallItem | CustomToolCallItem | FunctionCallOutput | CustomToolCallOutput
)


class InputItemsQuery(msgspec.Struct, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Annotated[Literal["asc", "desc"], Meta(description="`desc`: the last item first.")] = "desc"
    after: Annotated[str, Meta(description="The id of the item before the page.")] | None = None


class InputItemList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
