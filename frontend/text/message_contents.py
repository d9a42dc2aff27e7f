"""Which form of a message's content a template reads: a text, or a list of parts.

Nothing in a template says so. It is tried out, role by role, with words that no template has of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]
PART_SEPARATOR = " "
"""Between parts that become one text: what `transformers serve` puts there."""
_ROLES = ("system", "user", "assistant", "tool")
_WORDS = ("QuireProbeAlpha", "QuireProbeOmega")
_CALL = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": {}}}
_OTHERS: tuple[Any, ...] = ("Hi", [{"type": "text", "text": "Hi"}])


def roles_by_form(render: Callable[[list[Message]], str | None]) -> dict[str, frozenset[str]]:
    """The roles whose contents may be parts (`parts`), and those that must not be a text (`only_parts`). `render`
    gives None for a conversation that the template fails on."""
    parts = frozenset(role for role in _ROLES if _shows_parts(render, role))
    only_parts = frozenset(role for role in parts if not _shows_text(render, role))
    return {"parts": parts, "only_parts": only_parts}


def with_content(message: Message, forms: Mapping[str, frozenset[str]]) -> Message:
    """The message with its content in a form that the template reads."""
    role, content = message["role"], message.get("content")
    role = "system" if role == "developer" else role
    if isinstance(content, list) and role not in forms["parts"]:
        return {**message, "content": PART_SEPARATOR.join(part["text"] for part in content)}
    if isinstance(content, str) and role in forms["only_parts"]:
        return {**message, "content": [{"type": "text", "text": content}]}
    return message


def _shows_parts(render: Callable[[list[Message]], str | None], role: str) -> bool:
    content = [{"type": "text", "text": word} for word in _WORDS]
    texts = [render(_conversation(role, content, others)) for others in _OTHERS]
    # A template that writes the list as it is shows the words too, with all that is around them.
    return any(text is not None and all(word in text for word in _WORDS) and not _has_keys(text) for text in texts)


def _shows_text(render: Callable[[list[Message]], str | None], role: str) -> bool:
    """Also where every conversation with this role fails: then there is no reason to think otherwise."""
    texts = [render(_conversation(role, _WORDS[0], others)) for others in _OTHERS]
    rendered = [text for text in texts if text is not None]
    return not rendered or any(_WORDS[0] in text for text in rendered)


def _has_keys(text: str) -> bool:
    start, end = text.index(_WORDS[0]), text.rindex(_WORDS[1])
    around = text[max(0, start - 20) : start] + text[start:end]
    return any(f"{quote}text{quote}" in around for quote in ("'", '"', "&#39;", "&#34;"))


def _conversation(role: str, content: Any, others: Any) -> list[Message]:
    """`others`: the content of the messages around the one that is tried."""
    tried, user = {"role": role, "content": content}, {"role": "user", "content": others}
    if role == "system":
        return [tried, user]
    if role == "user":
        return [tried]
    if role == "assistant":
        return [user, tried, user]
    call = {"role": "assistant", "content": others, "tool_calls": [_CALL]}
    return [user, call, {**tried, "tool_call_id": _CALL["id"], "name": "probe"}]
