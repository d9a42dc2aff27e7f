"""Every item that an answer has is an input: as it was given, by reference, and by the response before."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.frontend.responses.test_responses import named_events, respond
from tests.frontend.responses.test_tools import CALL, LOOK, MIXED
from tests.frontend.support import MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}{% endfor %}"
    "{% if tools %}{{ tools }}{% endif %}"
)
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), chat_template=TEMPLATE, **formats) as setup:
        yield setup


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("summary", [None, "auto"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (MIXED, "<assistant>(Hm.)I look.[look][look]<tool>x<tool>x"),
        (f"<think>Hm.</think>{CALL}", "<assistant>(Hm.)[look]<tool>x"),
        ("<think>half a thought", "<assistant>(half a thought)"),
        ("Hello.", "<assistant>Hello."),
        ("", "<assistant>"),
    ],
)
def test_it_is_taken_back(setup: Setup, stream: bool, summary: str | None, text: str, shown: str) -> None:
    fields = {"tools": [LOOK], "reasoning": {"summary": summary}}
    text = text.removesuffix("Done.")  # what follows a call would be another message of the assistant
    setup.say(text) if text else setup.say_ids([])
    answer = respond(setup, "Hi", stream=stream, **fields)
    body = named_events(answer)[-1]["response"] if stream else answer.json()
    calls = [item["call_id"] for item in body["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call_id, "output": "x"} for call_id in calls]
    new = [*results, {"role": "user", "content": "And?"}]
    setup.say("ok")
    references = [{"type": "item_reference", "id": item["id"]} for item in body["output"]]
    for items in ([USER, *body["output"], *new], [USER, *references, *new]):
        respond(setup, items, store=False).raise_for_status()
        assert prompt_text(setup) == f"<user>Hi{shown}<user>And?"
    respond(setup, new, previous_response_id=body["id"]).raise_for_status()
    assert prompt_text(setup) == f"<user>Hi{shown}<user>And?"


def test_as_openais_client_sends_it(setup: Setup) -> None:
    """With fields that are null."""
    setup.say(f"<think>Hm.</think>I look.\n{CALL}")
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        tools: Any = [LOOK]
        first = client.responses.create(model=MODEL, input="Hi", tools=tools)
        history: Any = [USER, *first.output, {"type": "function_call_output", "call_id": "", "output": "x"}]
        history[-1]["call_id"] = first.output[-1].to_dict()["call_id"]
        client.responses.create(model=MODEL, input=history)
        assert prompt_text(setup) == "<user>Hi<assistant>(Hm.)I look.[look]<tool>x"
        history[1:4] = [item.model_dump() for item in first.output]
        client.responses.create(model=MODEL, input=history)
        assert prompt_text(setup) == "<user>Hi<assistant>(Hm.)I look.[look]<tool>x"


def test_reasoning_that_only_another_server_can_read(setup: Setup) -> None:
    setup.say("ok")
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAA"}
    respond(setup, [USER, sealed, {"role": "assistant", "content": "A"}, USER]).raise_for_status()
    assert prompt_text(setup) == "<user>Hi<assistant>A<user>Hi"


@pytest.mark.parametrize("field", ["content", "summary"])
def test_what_is_wrong_with_reasoning_is_named(setup: Setup, field: str) -> None:
    item = {"type": "reasoning", field: [{"type": "output_text", "text": "x"}]}
    assert error_of(respond(setup, [USER, item]), 400)["param"] == f"input[1].{field}[0]"
