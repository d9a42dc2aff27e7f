"""Prompts are those of transformers' `apply_chat_template` on the same folder."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jinja2 import TemplateError, UndefinedError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from frontend.chat_template import ChatTemplate
from frontend.conversation import template_messages
from frontend.errors import ApiError
from frontend.protocol.chat import ChatMessage
from frontend.tokenizer import TextTokenizer
from tests.frontend.text.conversations import CONVERSATIONS
from tests.frontend.text.tokenizer_folders import byte_level_bpe, configured, write_folder

TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
TAKES_PARTS = {"parts", "only_parts"}
"""Those that read lists of parts, whoever wrote them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = configured(byte_level_bpe(), image_token="<|image|>", pad_token="<pad>", unk_token="<unk>")
    return write_folder(tmp_path_factory.mktemp("model"), files)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(str(folder))


def rendered(template: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    """By the way of a request."""
    defaults = {"tools": None, "add_generation_prompt": True, "continue_final_message": False, "kwargs": {}}
    return template.render(template_messages(msgspec.convert(messages, list[ChatMessage])), **{**defaults, **options})


def as_transformers_wants(name: str, message: dict[str, Any]) -> dict[str, Any]:
    """What a careful user of transformers would hand over for the same message of the API."""
    message = dict(message)
    if message["role"] == "developer" and "developer" not in TEMPLATES[name]:
        message["role"] = "system"
    if name != "joined_arguments" and "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    if "reasoning_content" in message:
        message["reasoning"] = message["reasoning_content"]
    content = message["content"]
    takes_parts = name in TAKES_PARTS or (name == "parts_of_users" and message["role"] == "user")
    if isinstance(content, list) and not takes_parts:
        message["content"] = " ".join(part["text"] for part in content)
    if isinstance(content, str) and name == "only_parts":
        message["content"] = [{"type": "text", "text": content}]
    return message


def by_transformers(theirs: PreTrainedTokenizerBase, name: str, case: dict[str, Any]) -> str | None:
    """None where the template refuses the conversation or fails on it."""
    messages = [as_transformers_wants(name, message) for message in case["messages"]]
    options = {option: value for option, value in case.items() if option not in ("messages", "kwargs")}
    options = {"tokenize": False, "add_generation_prompt": True, **options, **case.get("kwargs", {})}
    options["chat_template"] = TEMPLATES[name]
    try:
        try:
            return theirs.apply_chat_template(messages, **options)
        except UndefinedError:  # null contents are left out, which not every template looks for
            filled = [{**message, "content": message["content"] or ""} for message in case["messages"]]
            return theirs.apply_chat_template([as_transformers_wants(name, each) for each in filled], **options)
    except (TemplateError, TypeError, ValueError):
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(
    name: str, theirs: PreTrainedTokenizerBase, tokenizer: TextTokenizer
) -> None:
    template = ChatTemplate({"default": TEMPLATES[name]}, tokenizer.special_tokens)
    num_equal = 0
    for case in CONVERSATIONS.values():
        wanted = by_transformers(theirs, name, case)
        if case.get("tools") and "tools" not in TEMPLATES[name]:
            wanted = None
        if wanted is None:
            with pytest.raises(ApiError, match=r"tools must not|chat template (refuses|cannot render|changes)"):
                rendered(template, **case)
            continue
        text = rendered(template, **case)
        assert text == wanted
        assert tokenizer.encode(text, False) == theirs(wanted, add_special_tokens=False).input_ids
        num_equal += 1
    assert num_equal >= 6
