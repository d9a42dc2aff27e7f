"""The chat templates of a model folder, where transformers looks for them."""

import os
from pathlib import Path
from typing import Any

import msgspec

from frontend.text.tokenizer_files import TokenizerError, load_object, load_tokenizer_config

DEFAULT, TOOL_USE = "default", "tool_use"
"""The names of the template that is used, and of the one that is used when there are tools."""


class _NamedTemplate(msgspec.Struct):
    """One of several in tokenizer_config.json."""

    name: str
    template: str


def template_sources(folder: str) -> dict[str, str]:
    """Sources by name. Files of their own come in place of all that tokenizer_config.json has; chat_template.json is
    the last resort. Raises `TokenizerError` with one sentence."""
    files = _own_files(folder)
    if files:
        return files
    configured = load_tokenizer_config(folder).get("chat_template")
    if configured is not None:
        return _configured(configured, f"chat_template in {folder}/tokenizer_config.json")
    of_processor = load_object(os.path.join(folder, "chat_template.json")).get("chat_template")
    return {} if of_processor is None else _configured(of_processor, f"chat_template in {folder}/chat_template.json")


def _own_files(folder: str) -> dict[str, str]:
    sources = {path.stem: _read(path) for path in sorted(Path(folder, "additional_chat_templates").glob("*.jinja"))}
    main = Path(folder, "chat_template.jinja")
    if main.exists():
        sources.setdefault(DEFAULT, _read(main))
    return sources


def _configured(value: Any, where: str) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        if isinstance(value, dict):
            return msgspec.convert(value, dict[str, str])
        return {entry.name: entry.template for entry in msgspec.convert(value, list[_NamedTemplate])}
    except msgspec.ValidationError as error:
        raise TokenizerError(f"{where} is neither a text nor a list of templates: {error}.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text.") from error
