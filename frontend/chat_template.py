"""Messages to a prompt by the model's own Jinja template, in a sandbox.

Templates come with models, from anywhere: they get data and a few harmless functions, and can change nothing.
"""

import datetime
import json
import os
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

from frontend.errors import bad_request
from frontend.text.tokenizer_files import TokenizerError, load_tokenizer_config

MAX_KWARGS = 32
MAX_KWARGS_BYTES = 16_384
MAX_TEMPLATE_CHARS = 65_536
"""Of a template that comes with a request."""

# Such a template puts a call's arguments into a text as they are: it wants them as JSON text, others as an object.
_JOINS_ARGUMENTS = re.compile(r"""arguments['"]?\]?\s*\+""")
_RESERVED = frozenset(("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "documents"))


class TemplateRefusal(jinja2.TemplateError):
    """A template called `raise_exception`: the conversation is not one that the model was made for."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is its own content."""

    tags = {"generation"}  # noqa: RUF012 - the type of jinja2's attribute

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _NamedTemplate(msgspec.Struct):
    """One of several in tokenizer_config.json."""

    name: str
    template: str


class ChatTemplate:
    """The compiled template or templates of one model: `default`, and `tool_use` where there is one."""

    def __init__(self, sources: dict[str, str], special_tokens: dict[str, str]) -> None:
        environment = _environment()
        self.sources = sources
        self._special_tokens = special_tokens
        self._templates = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                message = f"The chat template is not valid: {error.message} (line {error.lineno})."
                raise TokenizerError(message.replace("\n", " ")) from error
            except RecursionError as error:
                raise TokenizerError("The chat template is not valid: it is nested too deeply.") from error
        self.source = "\n".join(sources.values())
        """Of all of them together: what the model's formats are recognised by."""
        self._joins_arguments = {name for name, source in sources.items() if _JOINS_ARGUMENTS.search(source)}
        self._knows_developer = {name for name, source in sources.items() if "developer" in source}

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: dict[str, Any],
    ) -> str:
        """The prompt's text. Raises a 400 when the template refuses the conversation."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise bad_request("This model has no chat template; use /v1/completions or start with --chat-template.")
        if name not in self._knows_developer:
            messages = [
                {**message, "role": "system"} if message["role"] == "developer" else message for message in messages
            ]
        if name in self._joins_arguments:
            messages = [_with_arguments_as_text(message) for message in messages]
        try:
            text = self._templates[name].render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **kwargs},
            )
        except TemplateRefusal as error:
            raise bad_request(f"The chat template refuses this conversation: {error}", "messages") from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # Jinja runs the template as Python: a conversation that it does not fit fails in any of these ways.
            raise bad_request(f"The chat template cannot render this conversation: {error}", "messages") from error
        if continue_final_message:
            text = _cut_after_final_message(text, messages[-1]["content"])
        return text


def load_chat_template(folder: str, override: str | None, special_tokens: dict[str, str]) -> ChatTemplate:
    """The user's template, else the folder's. A folder without one gives a template that answers 400."""
    if override is not None:
        return ChatTemplate({"default": override}, special_tokens)
    sources: dict[str, str] = {}
    configured = load_tokenizer_config(folder).get("chat_template")
    if isinstance(configured, str):
        sources["default"] = configured
    elif configured is not None:
        try:
            sources.update((entry.name, entry.template) for entry in msgspec.convert(configured, list[_NamedTemplate]))
        except msgspec.ValidationError as error:
            message = f"chat_template in {folder}/tokenizer_config.json is neither a text nor a list of templates"
            raise TokenizerError(f"{message}: {error}.") from error
    path = os.path.join(folder, "chat_template.jinja")
    try:
        with open(path, encoding="utf-8") as file:
            sources["default"] = file.read()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text.") from error
    return ChatTemplate(sources, special_tokens)


class RequestTemplates:
    """Templates that requests bring along, where the server's owner trusts whoever sends them."""

    def __init__(self, special_tokens: dict[str, str], are_trusted: bool) -> None:
        self._special_tokens = special_tokens
        self._are_trusted = are_trusted

    def compile(self, source: str) -> ChatTemplate:
        """Raises a 400 for a template that may not or cannot be used."""
        if not self._are_trusted:
            raise bad_request(
                "chat_template must not be given: this server was started without --trust-request-chat-template.",
                "chat_template",
            )
        if len(source) > MAX_TEMPLATE_CHARS:
            raise bad_request(f"chat_template must have at most {MAX_TEMPLATE_CHARS} characters.", "chat_template")
        try:
            return ChatTemplate({"default": source}, self._special_tokens)
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


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The conventions that models' templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _tojson(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _cut_after_final_message(text: str, content: str) -> str:
    """Drops the turn's end, so that the model goes on with the last message."""
    content = content.rstrip()
    position = text.rfind(content)
    if position < 0:
        raise bad_request(
            "continue_final_message: the chat template changes the last message, so it cannot be continued.",
            "continue_final_message",
        )
    return text[: position + len(content)]
