"""Custom tools: a model sees a function with one text, a client gets the text."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from engine_core.ipc.messages import AddRequest
from frontend.preparation.jobs import ChatJob
from frontend.protocol.chat import ChatCompletionRequest
from frontend.protocol.responses import CustomToolFormat, ResponseTool
from frontend.responses.custom_tools import input_grammars
from tests.frontend.responses.test_responses import PATH, named_events, respond
from tests.frontend.responses.test_tools import without_ids
from tests.frontend.support import END, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of

PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "text"},
}
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}
TEXT = '+"Köln" \\ 🦊\n*** End'
NAMED = {"type": "custom", "name": "apply_patch"}


def call(arguments: str, name: str = "apply_patch") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = call(json.dumps({"input": TEXT}))


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def ask(setup: Setup, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return respond(setup, input, **{"tools": [PATCH, LOOK], **fields}).json()


def test_a_call(setup: Setup) -> None:
    setup.say(f"{CALL}\n{call('{}', 'look')}")
    body = ask(setup)
    item, other = body["output"]
    assert item.pop("id").startswith("ctc_")
    assert item.pop("call_id").startswith("call_")
    assert item == {"type": "custom_tool_call", "name": "apply_patch", "input": TEXT, "status": "completed"}
    assert (other["type"], other["arguments"]) == ("function_call", "{}")
    assert body["tools"][0] == {**PATCH, "parameters": None, "strict": None}
    shown = prompt_text(setup)
    assert '"description": "Edit files."' in shown
    assert (
        '"parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]' in shown
    )
    assert "custom" not in shown


@pytest.mark.parametrize("text", ["{}", '{"patch": "x"}', '{"input": 5}'])
def test_arguments_of_another_form_are_the_input(setup: Setup, text: str) -> None:
    setup.say(call(text))
    assert ask(setup)["output"][0]["input"] == text


def test_its_events(setup: Setup) -> None:
    setup.say(CALL)
    events = named_events(respond(setup, stream=True, tools=[PATCH]))
    added, delta, done, item_done = events[2:-1]
    assert (added["item"]["input"], added["item"]["status"]) == ("", "in_progress")
    assert delta["type"] == "response.custom_tool_call_input.delta"
    assert done["type"] == "response.custom_tool_call_input.done"
    assert delta["delta"] == done["input"] == item_done["item"]["input"] == TEXT
    completed = events[-1]["response"]
    assert without_ids(completed["output"]) == without_ids(ask(setup, tools=[PATCH])["output"])
    assert named_events(setup.http.get(f"{PATH}/{completed['id']}?stream=true")) == events


def test_a_conversation_with_calls_goes_on(setup: Setup) -> None:
    setup.say(CALL)
    first = ask(setup)
    item = first["output"][0]
    given = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "Done!"}
    arguments = json.dumps({"input": TEXT}, ensure_ascii=False)
    said = f"<|user|>Hi{END}<|assistant|>[apply_patch({arguments})]{END}<|tool|>Done!{END}<|assistant|>"
    setup.say("x")
    ask(setup, [given], previous_response_id=first["id"], tools=None)
    assert prompt_text(setup) == said
    parts = [{"type": "input_text", "text": "Done!"}]
    for again in (item, {"type": "item_reference", "id": item["id"]}):
        ask(setup, [{"role": "user", "content": "Hi"}, again, {**given, "output": parts}], tools=None)
        assert prompt_text(setup) == said


@pytest.mark.parametrize("choice", [NAMED, {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}])
def test_it_can_be_chosen(setup: Setup, choice: dict[str, Any]) -> None:
    setup.say(CALL)
    body = ask(setup, tool_choice=choice)
    assert ([item["type"] for item in body["output"]], body["tool_choice"]) == (["custom_tool_call"], choice)
    grammar = setup.core.received(AddRequest)[-1].sampling.grammar
    assert ("apply_patch" in grammar, "look" in grammar) == (True, False)


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
@pytest.mark.parametrize(
    ("syntax", "definition", "words", "bound"),
    [
        ("regex", r"[0-9]+", "regular expression", "^(?:[0-9]+)$"),
        ("lark", 'start: "+" line\nline: "<" /[a-z]/', "Lark grammar", "/[a-z]/"),
    ],
)
def test_its_format(setup: Setup, choice: Any, syntax: str, definition: str, words: str, bound: str) -> None:
    """It is shown and binds the input, in calls that must come and in those that may."""
    setup.say("x")
    wanted = {"type": "grammar", "syntax": syntax, "definition": definition}
    answer = respond(setup, tools=[{**PATCH, "format": wanted}], tool_choice=choice)
    assert answer.json()["tools"][0]["format"] == wanted
    assert "Warning" not in answer.headers
    assert f"The input has to match this {words}:" in prompt_text(setup)
    assert bound in setup.core.received(AddRequest)[-1].sampling.grammar


def test_a_lark_grammar_that_cannot_bind_is_refused(setup: Setup, tmp_path: Any) -> None:
    wanted = {"type": "grammar", "syntax": "lark", "definition": 'start: "(" start /[^)]+/ ")"'}
    tools = [LOOK, {**PATCH, "format": wanted}]
    error = error_of(respond(setup, tools=tools), 400)
    assert (error["param"], error["code"]) == ("tools[1].format.definition", "invalid_grammar")
    assert respond(setup, tools=tools, tool_choice="none").status_code == 200
    with running_setup(tmp_path, tool_call_parser="qwen3_coder") as own:
        error = error_of(respond(own, tools=tools), 400)
        assert (error["param"], error["code"]) == ("tools[1].format", "invalid_grammar")
        assert "'regex' may do" in error["message"]


def test_a_grammar_is_no_part_of_the_loops_work(setup: Setup) -> None:
    wanted = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    grammars = input_grammars([ResponseTool(type="custom", name="a", format=msgspec.convert(wanted, CustomToolFormat))])
    request = ChatCompletionRequest(messages=[])
    assert ChatJob(request, wants_grammar=True).is_light
    assert not ChatJob(request, wants_grammar=True, input_grammars=grammars).is_light


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].name"),
        ({"tools": [{**PATCH, "name": "two words"}]}, "tools[0].name"),
        ({"tools": [LOOK, {**PATCH, "name": "look"}]}, "tools[1].name"),
        ({"tools": [{**PATCH, "format": {"type": "json"}}]}, "tools[0].format.type"),
        ({"tools": [{**PATCH, "format": {"type": "grammar", "definition": "x"}}]}, "tools[0].format.syntax"),
        ({"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "lark"}}]}, "tools[0].format.definition"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "custom", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"input": [{"type": "custom_tool_call", "name": "apply_patch", "input": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
    ],
)
def test_a_wrong_field_is_named(setup: Setup, fields: dict[str, Any], param: str) -> None:
    error = error_of(respond(setup, **{"input": "Hi", "tools": [PATCH], **fields}), 400)
    assert error["param"] == param
    assert setup.core.received(AddRequest) == []


def test_the_openai_package(setup: Setup) -> None:
    setup.say(CALL)
    tools: Any = [PATCH]
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(model=MODEL, input="Hi", tools=tools) as events:
            final = events.get_final_response()
        (item,) = final.output
        assert item.type == "custom_tool_call"
        assert item.input == TEXT
        result: Any = [{"type": "custom_tool_call_output", "call_id": item.call_id, "output": "Done!"}]
        setup.say("Edited.")
        said = client.responses.create(model=MODEL, previous_response_id=final.id, input=result, tools=tools)
        assert said.output_text == "Edited."
        listed = list(client.responses.input_items.list(said.id, order="asc", limit=1))
        assert [one.type for one in listed] == ["message", "custom_tool_call", "custom_tool_call_output"]
