"""System messages behind the first place: some templates show them where they stand, others refuse or lose them.

`/v1/messages` and `/v1/responses` take them anywhere, so their conversations are rearranged for the others.
"""

from frontend.chat_template import ChatTemplate
from frontend.errors import ApiError
from frontend.protocol.chat import ChatMessage, ContentPart

_SYSTEM = ("system", "developer")
_TRIAL = (
    ("system", "<1>"),
    ("system", "<2>"),
    ("user", "<3>"),
    ("system", "<4>"),
    ("assistant", "<5>"),
    ("user", "<6>"),
)


def takes_system_anywhere(template: ChatTemplate) -> bool:
    """Whether a conversation with system messages in several places is rendered whole and in its order."""
    try:
        text = template.render(
            [{"role": role, "content": content} for role, content in _TRIAL],
            tools=None,
            add_generation_prompt=True,
            continue_final_message=False,
            kwargs={},
        )
    except ApiError:
        return False
    places = [text.find(content) for _, content in _TRIAL]
    return min(places) >= 0 and places == sorted(places)


def arranged(messages: list[ChatMessage], anywhere: bool) -> list[ChatMessage]:
    """The conversation for a template. `anywhere`: whether it takes system messages where they stand; else, where there
    is one behind the first place, the first message has the texts of all."""
    if anywhere or not any(message.role in _SYSTEM for message in messages[1:]):
        return messages
    texts = [_text(message.content) for message in messages if message.role in _SYSTEM]
    first = ChatMessage(role="system", content="\n\n".join(texts))
    return [first, *(message for message in messages if message.role not in _SYSTEM)]


def _text(content: str | list[ContentPart] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.text or "" for part in content)
    return content or ""
