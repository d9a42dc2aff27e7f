"""Tools and reasoning in `/v1/responses`: items, events, and calls in conversations that go on (CONFORMANCE 43)."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.responses.test_responses import PATH, named_events, respond
from tests.frontend.support import END, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "Köln"}}\n</tool_call>'
ARGUMENTS = '{"place": "Köln"}'
MIXED = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{CALL}\nDone."


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def ask(setup: Setup, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return respond(setup, input, **{"tools": [LOOK], "max_output_tokens": 300, **fields}).json()


def stream(setup: Setup, **fields: Any) -> list[Any]:
    return named_events(respond(setup, stream=True, **{"tools": [LOOK], "max_output_tokens": 300, **fields}))


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


def test_a_call(setup: Setup) -> None:
    setup.say(CALL)
    body = ask(setup)
    (item,) = body["output"]
    assert item.pop("id").startswith("fc_")
    assert item.pop("call_id").startswith("call_")
    assert item == {"type": "function_call", "name": "look", "arguments": ARGUMENTS, "status": "completed"}
    assert body["tools"] == [{**LOOK, "description": None, "strict": None}]
    assert (body["status"], body["tool_choice"], body["parallel_tool_calls"]) == ("completed", "auto", True)
    assert '"name": "look"' in prompt_text(setup)


def test_reasoning_text_and_calls_are_items_in_their_order(setup: Setup) -> None:
    setup.say(MIXED)
    body = ask(setup)
    types = [item["type"] for item in body["output"]]
    assert types == ["reasoning", "message", "function_call", "function_call", "message"]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert body["output"][0]["summary"] == []
    assert body["output"][1]["content"][0]["text"] == "I look."
    assert body["output"][4]["content"][0]["text"] == "Done."
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_reasoning_as_a_summary(setup: Setup) -> None:
    setup.say(MIXED)
    item = ask(setup, reasoning={"effort": "low", "summary": "auto"})["output"][0]
    assert (item["summary"], item["content"]) == ([{"type": "summary_text", "text": "Hm."}], [])
    events = stream(setup, reasoning={"summary": "detailed"})
    summary = [event for event in events if "reasoning_summary" in event["type"]]
    names = [event["type"].removeprefix("response.reasoning_summary_") for event in summary]
    assert names[0] == "part.added"
    assert set(names[1:-2]) == {"text.delta"}
    assert names[-2:] == ["text.done", "part.done"]
    assert "".join(event["delta"] for event in summary if "delta" in event) == "Hm."


@pytest.mark.parametrize("text", [MIXED, CALL, "Hello.", "<think>hm", "<think>hm</think>Hi", "", f"{CALL}a{CALL}b"])
def test_43_streamed_and_whole_items_are_the_same(setup: Setup, text: str) -> None:
    setup.say(text) if text else setup.say_ids([])
    events = stream(setup)
    completed = events[-1]["response"]
    assert without_ids(completed["output"]) == without_ids(ask(setup)["output"])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    # What is kept of it tells the same again.
    assert named_events(setup.http.get(f"{PATH}/{completed['id']}?stream=true")) == events
    # Each item is added, grows, and is done before the next one, and has the same id throughout.
    order = [event["output_index"] for event in events if "output_index" in event]
    assert order == sorted(order)
    for index, item in enumerate(completed["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert (own[-1]["type"], own[-1]["item"]) == ("response.output_item.done", item)
        assert own[0]["item"]["id"] == item["id"]
        assert {event["item_id"] for event in own if "item_id" in event} == {item["id"]}


def test_43_a_call_as_events(setup: Setup) -> None:
    setup.say(CALL)
    events = stream(setup)
    added, delta, done, item_done = events[2:-1]
    assert added["item"]["arguments"] == ""
    assert (added["item"]["status"], item_done["item"]["status"]) == ("in_progress", "completed")
    assert delta["type"] == "response.function_call_arguments.delta"
    assert done["type"] == "response.function_call_arguments.done"
    assert delta["delta"] == done["arguments"] == item_done["item"]["arguments"] == ARGUMENTS
    assert done["name"] == "look"


def test_a_reference_is_as_good_as_its_item(setup: Setup) -> None:
    setup.say(MIXED)
    output = ask(setup)["output"]
    assert [item["type"] for item in output[:3]] == ["reasoning", "message", "function_call"]
    given = {"type": "function_call_output", "call_id": output[2]["call_id"], "output": "42"}
    setup.say("x")
    prompts = []
    for items in (output[:3], [{"type": "item_reference", "id": item["id"]} for item in output[:3]]):
        assert ask(setup, [{"role": "user", "content": "Hi"}, *items, given])["status"] == "completed"
        prompts.append(prompt_text(setup))
    assert prompts[0] == prompts[1]
    assert f"I look.[look({json.dumps(json.loads(ARGUMENTS), ensure_ascii=False)})]" in prompts[0]
    assert f"42{END}" in prompts[0]


def test_reasoning_as_events(setup: Setup) -> None:
    setup.say("<think>one two</think>three")
    types = [event["type"].removeprefix("response.") for event in stream(setup) if event.get("output_index") == 0]
    assert types[:2] == ["output_item.added", "content_part.added"]
    assert set(types[2:-3]) == {"reasoning_text.delta"}
    assert types[-3:] == ["reasoning_text.done", "content_part.done", "output_item.done"]


def test_an_output_that_is_cut(setup: Setup) -> None:
    setup.say(f"<think>one</think>{CALL}")
    body = ask(setup, max_output_tokens=25)
    assert body["status"] == "incomplete"
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    assert CALL.startswith(body["output"][1]["content"][0]["text"])


def test_log_probabilities_are_of_the_text_alone(setup: Setup) -> None:
    setup.say("<think>one</think>two")
    part = ask(setup, top_logprobs=1)["output"][1]["content"][0]
    # The markers are several tokens for this tokenizer, of which some are not known for markers when they come.
    assert bytes(byte for entry in part["logprobs"] for byte in entry["bytes"]).endswith(b"wo")
    assert "one" not in "".join(entry["token"] for entry in part["logprobs"])


def test_a_conversation_with_calls_goes_on(setup: Setup) -> None:
    setup.say(f"I look.\n{CALL}")
    first = ask(setup, "Where?")
    call_id = first["output"][1]["call_id"]
    setup.say("There.")
    result = {"type": "function_call_output", "call_id": call_id, "output": "a bridge"}
    ask(setup, [result], previous_response_id=first["id"], tools=None)
    said = f"<|user|>Where?{END}<|assistant|>I look.[look({ARGUMENTS})]{END}<|tool|>a bridge{END}<|assistant|>"
    assert prompt_text(setup) == said
    # The same by a client that keeps the conversation itself, reasoning and ids of items included.
    items = [
        {"role": "user", "content": "Where?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        *first["output"],
        {**result, "output": [{"type": "input_text", "text": "a bridge"}]},
    ]
    ask(setup, items, tools=None)
    assert prompt_text(setup) == said


def test_one_call_where_no_more_are_wanted(setup: Setup) -> None:
    setup.say(f"{CALL}\n{CALL}")
    assert len(ask(setup, parallel_tool_calls=False)["output"]) == 1
    body = ask(setup, tool_choice="none")
    assert [item["type"] for item in body["output"]] == ["message"]
    assert body["tool_choice"] == "none"


def allowing(*references: dict[str, Any], mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": list(references)}


NAMED = {"type": "function", "name": "look"}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_tools_that_are_not_allowed_are_seen_and_not_called(setup: Setup, mode: str) -> None:
    other = CALL.replace("look", "listen")
    setup.say(f"{CALL}{other}")
    choice = allowing(NAMED, mode=mode)
    fields = {"tools": [LOOK, {**LOOK, "name": "listen"}], "tool_choice": choice}
    body = ask(setup, **fields)
    assert [item["type"] for item in body["output"]] == ["function_call", "message"]
    assert body["output"][1]["content"][0]["text"] == other
    assert body["tool_choice"] == choice
    assert '"name": "listen"' in prompt_text(setup)
    (grammar,) = [add.sampling.grammar for add in setup.core.received(AddRequest)]
    assert ("listen" in grammar, "look" in grammar) == (False, True)
    events = stream(setup, **fields)
    assert without_ids(events[-1]["response"]["output"]) == without_ids(body["output"])
    assert [event["response"]["tool_choice"] for event in events if "response" in event] == [choice] * 3
    stored = setup.http.get(f"/v1/responses/{body['id']}").json()
    assert stored["tool_choice"] == choice


def test_a_named_function_comes_back_as_it_was_given(setup: Setup) -> None:
    setup.say(CALL)
    assert ask(setup, tool_choice=NAMED)["tool_choice"] == NAMED


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [LOOK, LOOK]}, "tools[1].name"),
        ({"tools": [{**LOOK, "name": "two words"}]}, "tools[0].name"),
        ({"tools": [{**LOOK, "parameters": {"properties": {"a": 1}}}]}, "tools[0].parameters.properties.a"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": 5}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [NAMED]}}, "tool_choice.mode"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"tool_choice": allowing(NAMED, mode="any")}, "tool_choice.mode"),
        ({"tool_choice": allowing()}, "tool_choice.tools"),
        ({"tool_choice": allowing(NAMED, NAMED)}, "tool_choice.tools[1].name"),
        ({"tool_choice": allowing(NAMED, {**NAMED, "name": "other"})}, "tool_choice.tools[1].name"),
        ({"tool_choice": allowing(NAMED), "tools": None}, "tool_choice.tools[0].name"),
        ({"tool_choice": allowing({"type": "function"})}, "tool_choice.tools[0].name"),
        ({"tool_choice": allowing({"type": "mcp", "server_label": "x"})}, "tool_choice.tools[0].type"),
        ({"tool_choice": allowing({"type": "function", "function": {"name": "look"}})}, "tool_choice.tools[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "call_x", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "name": "look", "arguments": "{}"}]}, "input[0].call_id"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
    ],
)
def test_a_wrong_field_is_named(setup: Setup, fields: dict[str, Any], param: str) -> None:
    error = error_of(respond(setup, **{"input": "Hi", "tools": [LOOK], **fields}), 400)
    assert error["param"] == param
    assert "function.name" not in error["message"]
    assert "allowed_tools." not in error["message"]
    assert setup.core.received(AddRequest) == []


def test_the_openai_package(setup: Setup) -> None:
    setup.say(MIXED)
    tools: Any = [LOOK]
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(model=MODEL, input="Hi", tools=tools, max_output_tokens=300) as events:
            final = events.get_final_response()
        calls = [item for item in final.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [{"place": "Köln"}] * 2
        assert final.output_text == "I look.Done."
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "x"} for call in calls]
        setup.say("A bridge.")
        said = client.responses.create(model=MODEL, previous_response_id=final.id, input=result, tools=tools)
        assert said.output_text == "A bridge."
        assert client.responses.retrieve(said.id).output == said.output
