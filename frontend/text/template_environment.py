"""The Jinja that models' chat templates are written for, as transformers has it, in a sandbox.

Templates come with models, from anywhere: they get data and a few harmless functions, and can change nothing.
"""

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from frontend.text.tokenizer_files import TokenizerError


class TemplateRefusal(jinja2.TemplateError):
    """A template called `raise_exception`: the conversation is not one that the model was made for."""


class JsonObject(dict[str, Any]):
    """A dict that is JSON where a template writes it as it is: Python's own form is nothing that a model has seen."""

    def __str__(self) -> str:
        return tojson(self)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


class JsonArray(list[Any]):
    """The same for a list."""

    def __str__(self) -> str:
        return tojson(self)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is its own content."""

    tags = {"generation"}  # noqa: RUF012 - the type of jinja2's attribute

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # What is set inside is not seen outside.
        return jinja2.nodes.Scope(body).set_lineno(line)


def compile_template(source: str) -> tuple[jinja2.Template, jinja2.nodes.Template]:
    """A template, and its syntax tree. Raises `TokenizerError` with one sentence."""
    try:
        tree = _ENVIRONMENT.parse(source)
        return _ENVIRONMENT.from_string(tree), tree
    except jinja2.TemplateSyntaxError as error:
        message = f"The chat template is not valid: {error.message} (line {error.lineno})."
        raise TokenizerError(message.replace("\n", " ")) from error
    except RecursionError as error:
        raise TokenizerError("The chat template is not valid: it is nested too deeply.") from error


def names_of(tree: jinja2.nodes.Template) -> frozenset[str]:
    """The variables that a template takes from outside, somewhere in it."""
    return frozenset(jinja2.meta.find_undeclared_variables(tree))


def literals_of(tree: jinja2.nodes.Template) -> str:
    """What a template writes by itself, pieces apart."""
    pieces = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    pieces += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    return "\0".join(pieces)


def json_values(value: Any) -> Any:
    """A JSON value whose objects and arrays are written as JSON."""
    if isinstance(value, dict):
        return JsonObject({key: json_values(entry) for key, entry in value.items()})
    if isinstance(value, list):
        return JsonArray(json_values(entry) for entry in value)
    return value


def tojson(
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


def _make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _make_environment()
