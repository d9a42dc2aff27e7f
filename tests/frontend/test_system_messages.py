"""System messages behind the first place, for templates that show them there and for those that do not."""

from pathlib import Path
from typing import Any

import pytest

from frontend.chat_template import ChatTemplate
from frontend.system_messages import takes_system_anywhere
from tests.frontend.messages.test_messages import PATH as MESSAGES
from tests.frontend.messages.test_messages import USER, send
from tests.frontend.responses.test_responses import respond
from tests.frontend.support import MODEL, running_setup
from tests.frontend.test_http_answers import prompt_text

ANYWHERE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TURNS = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
FIRST = "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}"
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('System first.') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
GATHERING = "{% for m in messages %}{% if m.role == 'system' %}<system>{{ m.content }}{% endif %}{% endfor %}" + TURNS


@pytest.mark.parametrize(
    ("source", "anywhere"), [(ANYWHERE, True), (FIRST + TURNS, False), (REFUSING, False), (GATHERING, False)]
)
def test_what_a_template_takes_is_tried(source: str, anywhere: bool) -> None:
    assert takes_system_anywhere(ChatTemplate({"default": source}, {})) is anywhere


def test_without_a_template_nothing_is_taken() -> None:
    assert takes_system_anywhere(ChatTemplate({}, {})) is False


@pytest.mark.parametrize("template", [FIRST + TURNS, REFUSING])
def test_what_comes_later_is_put_first(tmp_path: Path, template: str) -> None:
    late: dict[str, Any] = {"role": "system", "content": "Be brief."}
    with running_setup(tmp_path, chat_template=template) as own:
        own.say("x")
        answer = send(own, messages=[*USER, late], system="S")
        answer.raise_for_status()
        assert prompt_text(own) == "<system>S\n\nBe brief.<user>Hi"
        counted = own.post(f"{MESSAGES}/count_tokens", {"model": MODEL, "messages": [*USER, late], "system": "S"})
        assert counted.json()["input_tokens"] == answer.json()["usage"]["input_tokens"]
        send(own, messages=[*USER, late]).raise_for_status()
        assert prompt_text(own) == "<system>Be brief.<user>Hi"
        parts = [{"type": "input_text", "text": "D"}, {"type": "input_text", "text": "E"}]
        respond(own, [{"role": "developer", "content": parts}, *USER, late], instructions="S").raise_for_status()
        assert prompt_text(own) == "<system>S\n\nD\nE\n\nBe brief.<user>Hi"
        respond(own, [{"role": "system", "content": "S"}, *USER]).raise_for_status()
        assert prompt_text(own) == "<system>S<user>Hi"
        respond(own, "Hi").raise_for_status()
        assert prompt_text(own) == "<user>Hi"
