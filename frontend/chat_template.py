"""Messages to a prompt by the model's own Jinja template, as transformers renders it.

Plain data in, text out: nothing here waits, and nothing is kept from one conversation to the next.
"""

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jinja2
import msgspec

from frontend.errors import bad_request
from frontend.text.control_tokens import ControlTokens, mark, with_marks
from frontend.text.message_contents import roles_by_form, with_content
from frontend.text.template_environment import (
    TemplateRefusal,
    compile_template,
    json_values,
    literals_of,
    names_of,
)
from frontend.text.template_files import DEFAULT, TOOL_USE, template_sources
from frontend.text.tokenizer_files import TokenizerError

MAX_KWARGS = 32
MAX_KWARGS_BYTES = 16_384
MAX_TEMPLATE_CHARS = 65_536
"""Of a template that comes with a request."""
NUM_KEPT_TEMPLATES = 16
"""Compiled templates of requests that are kept."""

_RESERVED = frozenset(("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "documents"))
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read an assistant's reasoning. All of them are given."""
_PLACE = chr(0x100000 + secrets.randbelow(0xFFFE))
"""Stands behind a message that is continued while it is rendered: a private character that nobody can guess. It is one
character, so that no template writes a part of it."""
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""Jinja runs a template as Python: a conversation that it does not fit fails in any of these ways."""

Message = dict[str, Any]


class _Template:
    """One compiled template, and what it can show."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], control_tokens: ControlTokens | None) -> None:
        """Raises `TokenizerError` with one sentence."""
        self._compiled, tree = compile_template(source)
        self._special_tokens = special_tokens
        self.shows_tools = "tools" in names_of(tree)
        self.knows_developer = "developer" in source
        self.control_tokens: re.Pattern[str] | None = None
        if control_tokens is not None:
            self.control_tokens = control_tokens.pattern(literals_of(tree))
        self.forms = roles_by_form(self._try_out)

    def write(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> str:
        return self._compiled.render(
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **kwargs},
        )

    def _try_out(self, messages: list[Message]) -> str | None:
        try:
            return self.write(messages, tools=None, add_generation_prompt=False, kwargs={})
        except _FAILURES:
            return None


class ChatTemplate:
    """The templates of one model: `default`, `tool_use` where there is one for tools, and others by name."""

    def __init__(
        self,
        sources: dict[str, str],
        special_tokens: dict[str, str],
        control_tokens: ControlTokens | None = None,
    ) -> None:
        """`control_tokens`: those that mean nothing in messages, tools and variables; None: they keep their meaning.
        Raises `TokenizerError` with one sentence."""
        self.sources = sources
        self._special_tokens = special_tokens
        self._control_tokens = control_tokens
        self._templates = {name: _Template(source, special_tokens, control_tokens) for name, source in sources.items()}
        self.source = "\n".join(sources.values())
        """Of all of them together: what the model's formats are recognised by."""

    def with_default(self, source: str) -> "ChatTemplate":
        """Another template for the same model. Raises `TokenizerError` with one sentence."""
        return ChatTemplate({DEFAULT: source}, self._special_tokens, self._control_tokens)

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: dict[str, Any],
    ) -> str:
        """The prompt's text. `messages`: JSON, arguments of calls as objects, contents as texts or lists of text
        parts. Raises a 400 when the template cannot show the conversation, and for tools that it does not show."""
        template = self._of(tools)
        try:
            if template.control_tokens is not None:
                tools, kwargs = mark([tools, kwargs], template.control_tokens)
                # A role is none of a user's words, and templates compare it.
                messages = [{**mark(message, template.control_tokens), "role": message["role"]} for message in messages]
            messages = [_as_read(message, template) for message in messages]
        except RecursionError as error:
            raise bad_request("messages must not be nested so deeply.", "messages") from error
        content = ""
        if continue_final_message:
            content, messages[-1] = _with_place(messages[-1])
        text = _written(template, messages, tools, add_generation_prompt, kwargs)
        if template.control_tokens is not None:
            text = with_marks(text)
        return _cut_at_place(text, content) if continue_final_message else text

    def _of(self, tools: list[dict[str, Any]] | None) -> _Template:
        template = self._templates.get(TOOL_USE if tools and TOOL_USE in self._templates else DEFAULT)
        if template is None:
            named = ", ".join(map(repr, sorted(self.sources)))
            which = f"default chat template, but others by name ({named})" if named else "chat template"
            raise bad_request(f"This model has no {which}; use /v1/completions or start with --chat-template.")
        if tools and not template.shows_tools:
            raise bad_request(
                "tools must not be given: this model's chat template has no place for them, so the model would never "
                "see them. Describe them in a system message, or start with --chat-template and one that shows tools.",
                "tools",
            )
        return template


def load_chat_template(
    folder: str,
    override: str | None,
    special_tokens: dict[str, str],
    control_tokens: ControlTokens | None = None,
) -> ChatTemplate:
    """The user's template, else the folder's. A folder without one gives a template that answers 400."""
    sources = template_sources(folder) if override is None else {DEFAULT: override}
    return ChatTemplate(sources, special_tokens, control_tokens)


class RequestTemplates:
    """Templates that requests bring along, where the server's owner trusts whoever sends them, and the model's own by
    their names, which anybody may use."""

    def __init__(self, model_template: ChatTemplate, are_trusted: bool) -> None:
        self._model_template = model_template
        self._are_trusted = are_trusted
        self._compiled = lru_cache(maxsize=NUM_KEPT_TEMPLATES)(model_template.with_default)

    def compile(self, source: str) -> ChatTemplate:
        """Raises a 400 for a template that may not or cannot be used."""
        named = self._model_template.sources.get(source)
        if named is None and not self._are_trusted:
            raise bad_request(
                "chat_template must not be given: this server was started without --trust-request-chat-template.",
                "chat_template",
            )
        if named is None and len(source) > MAX_TEMPLATE_CHARS:
            raise bad_request(f"chat_template must have at most {MAX_TEMPLATE_CHARS} characters.", "chat_template")
        try:
            return self._compiled(source if named is None else named)
        except TokenizerError as error:
            raise bad_request(str(error), "chat_template") from error


def check_kwargs(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """A client's own variables for the template, within bounds."""
    if not kwargs:
        return {}
    field = "chat_template_kwargs"
    if len(kwargs) > MAX_KWARGS or len(msgspec.json.encode(kwargs)) > MAX_KWARGS_BYTES:
        raise bad_request(f"{field} must have at most {MAX_KWARGS} names and {MAX_KWARGS_BYTES} bytes.", field)
    for name in kwargs:
        if name in _RESERVED or not name.isidentifier():
            raise bad_request(f"{field} must not set {name!r}.", field)
    return kwargs


def _as_read(message: Message, template: _Template) -> Message:
    """A copy in the form that the template reads."""
    message = dict(message)
    if message["role"] == "developer" and not template.knows_developer:
        message["role"] = "system"
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is not None:
        message |= dict.fromkeys(_REASONING, reasoning)
    if "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json_values(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return with_content(message, template.forms)


def _with_place(message: Message) -> tuple[str, Message]:
    """The text that is continued, and the message with the place marked behind it."""
    if message.get("tool_calls"):
        raise bad_request(
            "continue_final_message must not be true after tool calls: there is no text to go on with.",
            "continue_final_message",
        )
    content = message.get("content") or ""
    if isinstance(content, str):
        return content, {**message, "content": content + _PLACE}
    last = content[-1]
    return last["text"], {**message, "content": [*content[:-1], {**last, "text": last["text"] + _PLACE}]}


def _cut_at_place(text: str, content: str) -> str:
    """What stands before the place. Raises a 400 where the content does not stand there to the letter; white space at
    its beginning is the template's."""
    before, place, _ = text.rpartition(_PLACE)
    if not place or not before.endswith(content.lstrip()):
        raise bad_request(
            "continue_final_message: the chat template changes the last message, so it cannot be continued.",
            "continue_final_message",
        )
    return before.replace(_PLACE, "")


def _written(
    template: _Template,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    kwargs: Mapping[str, Any],
) -> str:
    try:
        try:
            return template.write(messages, tools=tools, add_generation_prompt=add_generation_prompt, kwargs=kwargs)
        except jinja2.UndefinedError:
            # A message of calls alone has no content; not every template looks whether it is there.
            filled = [with_content({"content": "", **message}, template.forms) for message in messages]
            if filled == messages:
                raise
            return template.write(filled, tools=tools, add_generation_prompt=add_generation_prompt, kwargs=kwargs)
    except TemplateRefusal as error:
        raise bad_request(f"The chat template refuses this conversation: {error}", "messages") from error
    except _FAILURES as error:
        raise bad_request(f"The chat template cannot render this conversation: {error}", "messages") from error
