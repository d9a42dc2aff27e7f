"""Templates as models bring them."""

from typing import Any

import pytest

from frontend.chat_template import ChatTemplate


@pytest.mark.parametrize(
    "expression",
    [
        "call['function']['name'] + call['function']['arguments'] + '.'",
        "call.function.name + (call.function.arguments | tojson) + '.'",
    ],
)
def test_a_template_gets_arguments_in_the_form_that_it_joins(expression: str) -> None:
    source = "{% for call in messages[0].tool_calls %}{{ " + expression + " }}{% endfor %}"
    call = {"type": "function", "function": {"name": "look", "arguments": {"place": "Köln"}}}
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    text = ChatTemplate({"default": source}, {}).render(
        messages, tools=None, add_generation_prompt=False, continue_final_message=False, kwargs={}
    )
    assert text == 'look{"place": "Köln"}.'
