"""Items of `/v1/responses` as the messages of a chat.

What an assistant says in one turn is several items (reasoning, text, calls) there, and one message here.
"""

from collections.abc import Iterable

from frontend.errors import bad_request
from frontend.protocol.chat import ChatMessage, ContentPart, FunctionCall, ToolCall
from frontend.protocol.responses import CustomToolCallItem, FunctionCallItem, InputItem, OutputItem, OutputMessage
from frontend.responses.custom_tools import arguments_of

_TEXT_PARTS = frozenset(("text", "input_text", "output_text"))
_REASONING_PARTS = frozenset(("summary_text", "reasoning_text"))


class Conversation:
    """Messages that grow item by item."""

    def __init__(self, messages: Iterable[ChatMessage] = (), item_ids: Iterable[str] = ()) -> None:
        self.messages = list(messages)
        self.item_ids = list(item_ids)
        """The items of our answers in it."""
        self._turn: ChatMessage | None = None
        """The assistant's last message, as long as nobody else has said anything."""

    def add_output(self, items: Iterable[OutputItem]) -> None:
        """An answer of ours."""
        for item in items:
            self.item_ids.append(item.id)
            if isinstance(item, OutputMessage):
                self._add_text("".join(part.text for part in item.content))
            elif isinstance(item, FunctionCallItem):
                self._add_call(item.call_id, item.name, item.arguments)
            elif isinstance(item, CustomToolCallItem):
                self._add_call(item.call_id, item.name, arguments_of(item.input))
            else:
                texts = [part.text for part in item.content] + [part.text for part in item.summary]
                self._add_reasoning("".join(texts))

    def add_input(self, item: InputItem, where: str) -> None:
        """An item of a request. Raises a 400 that names what is wrong with it."""
        if item.type in (None, "message"):
            self._add_message(item, where)
        elif item.type == "reasoning":
            self._add_reasoning(_reasoning_of(item, where))
        elif item.type in ("function_call", "custom_tool_call"):
            call_id, name = _given(item.call_id, f"{where}.call_id"), _given(item.name, f"{where}.name")
            is_custom = item.type == "custom_tool_call"
            self._add_call(call_id, name, arguments_of(item.input or "") if is_custom else item.arguments or "{}")
        elif item.type in ("function_call_output", "custom_tool_call_output"):
            self._add_call_output(item, where)
        else:
            raise bad_request(
                "An item of input must be a message, reasoning, a function_call, a custom_tool_call, the output of one "
                f"of these or an item_reference, not {str(item.type)[:64]!r}.",
                f"{where}.type",
            )

    def _add_message(self, item: InputItem, where: str) -> None:
        if item.role in (None, "tool", "function"):
            raise bad_request("role must be 'user', 'assistant', 'system' or 'developer'.", f"{where}.role")
        content = _content(item.content, f"{where}.content")
        if item.role != "assistant":
            self._append(ChatMessage(role=item.role, content=content))
        elif isinstance(content, list):
            self._add_text("".join(part.refusal or part.text or "" for part in content))
        else:
            self._add_text(content or "")

    def _add_call_output(self, item: InputItem, where: str) -> None:
        call_id = _given(item.call_id, f"{where}.call_id")
        if not any(call.id == call_id for message in self.messages for call in message.tool_calls or ()):
            raise bad_request(f"There is no call with the call_id {call_id[:128]!r}.", f"{where}.call_id")
        if item.output is None:
            raise bad_request(f"{where}.output must be given.", f"{where}.output")
        content = _content(item.output, f"{where}.output")
        self._append(ChatMessage(role="tool", tool_call_id=call_id, content=content))

    def _add_reasoning(self, text: str) -> None:
        if not text:  # what another server alone can read
            return
        turn = self._assistant()
        turn.reasoning_content = (turn.reasoning_content or "") + text

    def _add_text(self, text: str) -> None:
        turn = self._assistant()
        if isinstance(turn.content, str) and not turn.tool_calls:  # two messages of the assistant stay two
            self._turn = None
            turn = self._assistant()
        turn.content = f"{turn.content or ''}{text}"

    def _add_call(self, call_id: str, name: str, arguments: str) -> None:
        turn = self._assistant()
        call = ToolCall(id=call_id, function=FunctionCall(name=name, arguments=arguments))
        turn.tool_calls = [*(turn.tool_calls or ()), call]

    def _assistant(self) -> ChatMessage:
        if self._turn is None:
            self._append(ChatMessage(role="assistant"))
            self._turn = self.messages[-1]
        return self._turn

    def _append(self, message: ChatMessage) -> None:
        self._turn = None
        self.messages.append(message)


def is_reference(item: InputItem) -> bool:
    """Whether it stands for an item of an earlier response: its type says so, or there is nothing but an id."""
    return item.type == "item_reference" or (item.id is not None and item == InputItem(id=item.id))


def _reasoning_of(item: InputItem, where: str) -> str:
    """Its summary stands for what was left out of it."""
    field, parts = ("content", item.content) if item.content else ("summary", item.summary or [])
    if isinstance(parts, str):
        return parts
    for index, part in enumerate(parts):
        if part.type not in _REASONING_PARTS or part.text is None:
            raise bad_request("Reasoning must be text.", f"{where}.{field}[{index}]")
    return "".join(part.text or "" for part in parts)


def _given(value: str | None, where: str) -> str:
    if not value:
        raise bad_request(f"{where} must be given.", where)
    return value


def _content(content: str | list[ContentPart] | None, where: str) -> str | list[ContentPart] | None:
    if not isinstance(content, list):
        return content
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: ContentPart, where: str) -> ContentPart:
    if part.type == "refusal" and part.refusal is not None:
        return part
    if part.type not in _TEXT_PARTS or part.text is None:
        raise bad_request(f"A part of input must be text, not {part.type[:64]!r}: this model takes text only.", where)
    return ContentPart(type="text", text=part.text)
