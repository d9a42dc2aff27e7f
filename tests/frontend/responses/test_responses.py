"""`/v1/responses`: shapes, events (CONFORMANCE 43), and conversations that are kept."""

import json
from typing import Any

import httpx
import openai
import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.support import END, MAX_MODEL_LEN, MODEL, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of

PATH = "/v1/responses"
TEXT = "Grüße, 你好 🦊!"


def respond(setup: Setup, input: Any = "Hi", **fields: Any) -> httpx.Response:
    return setup.post(PATH, {"model": MODEL, "input": input, **fields})


def named_events(response: httpx.Response) -> list[Any]:
    """The data of named events, each with the name that its type says."""
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_response(setup):
    setup.say(TEXT)
    body = respond(setup, instructions="Be brief.", metadata={"a": "b"}).json()
    assert (body["object"], body["status"], body["model"], body["error"]) == ("response", "completed", MODEL, None)
    message = body["output"][0]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
    assert body["id"].startswith("resp_")
    assert message["id"].startswith("msg_")
    assert body["metadata"] == {"a": "b"}
    num_tokens = len(setup.tokenizer.encode(TEXT).ids)
    assert body["usage"]["output_tokens"] == num_tokens
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + num_tokens
    assert prompt_text(setup) == f"<|system|>Be brief.{END}<|user|>Hi{END}<|assistant|>"


def test_input_items(setup):
    setup.say("ok")
    respond(
        setup,
        [
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "U"}]},
            {"role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "A", "annotations": []}]},
            {"role": "user", "content": "V"},
        ],
    )
    assert prompt_text(setup) == (f"<|system|>D{END}<|user|>U{END}<|assistant|>A{END}<|user|>V{END}<|assistant|>")


def test_43_the_events_of_a_stream(setup):
    setup.say(TEXT)
    response = respond(setup, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = named_events(response)
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = types.count("output_text.delta")
    assert deltas >= 1
    assert types == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"].endswith(".delta")) == TEXT
    completed = events[-1]["response"]
    item = completed["output"][0]
    assert item == events[-2]["item"]
    assert all(event["item_id"] == item["id"] for event in events if "item_id" in event)
    assert all(event["output_index"] == 0 for event in events if "output_index" in event)
    assert events[0]["response"]["status"] == "in_progress"
    assert (completed["status"], item["content"][0]["text"]) == ("completed", TEXT)
    assert completed["usage"]["output_tokens"] == len(setup.tokenizer.encode(TEXT).ids)
    assert setup.http.get(f"{PATH}/{completed['id']}").json() == completed


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_is_incomplete(setup, stream):
    setup.say("a b c d e f g")
    response = respond(setup, max_output_tokens=2, stream=stream)
    if stream:
        event = named_events(response)[-1]
        assert event["type"] == "response.incomplete"
        body = event["response"]
    else:
        body = response.json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    assert body["usage"]["output_tokens"] == 2


def test_conversations_go_on(setup):
    setup.say("One.")
    first = respond(setup, "A", instructions="Old.").json()
    setup.say("Two.")
    second = respond(setup, "B", previous_response_id=first["id"], stream=True)
    second_id = named_events(second)[-1]["response"]["id"]
    assert prompt_text(setup) == f"<|user|>A{END}<|assistant|>One.{END}<|user|>B{END}<|assistant|>"
    respond(setup, "C", previous_response_id=second_id, instructions="New.")
    assert prompt_text(setup) == (
        f"<|system|>New.{END}<|user|>A{END}<|assistant|>One.{END}<|user|>B{END}<|assistant|>Two.{END}"
        f"<|user|>C{END}<|assistant|>"
    )
    assert setup.http.get(f"{PATH}/{first['id']}").json() == first
    assert setup.http.delete(f"{PATH}/{first['id']}").json()["deleted"] is True
    assert error_of(setup.http.get(f"{PATH}/{first['id']}"), 404)["code"] == "response_not_found"
    error = error_of(respond(setup, "D", previous_response_id=first["id"]), 400)
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


def test_what_is_not_stored_is_not_found(setup):
    setup.say("x")
    body = respond(setup, store=False).json()
    assert error_of(setup.http.get(f"{PATH}/{body['id']}"), 404)
    assert body["store"] is False


def test_nobody_elses_responses(setup):
    setup.say("x")
    mine, theirs = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}
    body = setup.post(PATH, {"input": "secret"}, headers=mine).json()
    path = f"{PATH}/{body['id']}"
    assert setup.http.get(path, headers=mine).status_code == 200
    for headers in (theirs, {}):
        assert error_of(setup.http.get(path, headers=headers), 404)
        assert error_of(setup.http.delete(path, headers=headers), 404)
        assert error_of(setup.post(f"{path}/cancel", {}, headers=headers), 404)
        refused = setup.post(PATH, {"input": "x", "previous_response_id": body["id"]}, headers=headers)
        assert error_of(refused, 400)["param"] == "previous_response_id"


def test_log_probabilities(setup):
    setup.say("one")
    part = respond(setup, top_logprobs=2).json()["output"][0]["content"][0]
    assert bytes(byte for entry in part["logprobs"] for byte in entry["bytes"]) == b"one"
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    part = respond(setup, include=["message.output_text.logprobs"]).json()["output"][0]["content"][0]
    assert part["logprobs"][0]["top_logprobs"] == []


def test_in_the_background(setup):
    setup.say("x")
    setup.core.pause()
    body = respond(setup, background=True).json()
    path = f"{PATH}/{body['id']}"
    assert (body["status"], body["output"]) == ("in_progress", [])
    assert setup.http.get(path).json()["status"] == "in_progress"
    error = error_of(respond(setup, previous_response_id=body["id"]), 400)
    assert error["param"] == "previous_response_id"
    setup.core.resume()
    while (ended := setup.http.get(path).json())["status"] == "in_progress":
        pass
    assert (ended["status"], ended["output"][0]["content"][0]["text"]) == ("completed", "x")
    assert setup.post(f"{path}/cancel", {}).json() == ended


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": "refuse me"}, "input"),
        ({"input": "word " * 600}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": MAX_MODEL_LEN}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"background": True, "store": False}, "background"),
        ({"text": {"format": {"type": "poem"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 1}}}}, "text.format.schema.type"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"previous_response_id": "x" * 500}, "previous_response_id"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(setup, fields, param, stream):
    error = error_of(respond(setup, **{"stream": stream, **fields}), 400)
    assert error["param"] == param
    assert setup.core.received(AddRequest) == []


def test_only_the_background_can_be_cancelled(setup):
    setup.say("x")
    body = respond(setup).json()
    assert error_of(setup.post(f"{PATH}/{body['id']}/cancel", {}), 400)
    assert error_of(setup.post(f"{PATH}/resp_none/cancel", {}), 404)


def test_a_failure_midway_is_an_event(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one two three", endless=True)
        own.core.pause()
        own.core.allow_steps(2)
        with own.http.stream("POST", PATH, json={"input": "x", "stream": True}) as response:
            lines = response.iter_lines()
            while "output_text.delta" not in next(lines):
                pass
            own.core.stop()
            last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")][-1]
    assert last["type"] == "response.failed"
    assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "engine_dead")


def test_the_openai_package(setup):
    setup.say(TEXT)
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(model=MODEL, input="Hi")
        assert answer.output_text == TEXT
        with client.responses.stream(model=MODEL, input="Go on", previous_response_id=answer.id) as stream:
            types = [event.type for event in stream]
            assert stream.get_final_response().output_text == TEXT
        assert types[-1] == "response.completed"
        assert client.responses.retrieve(answer.id).output_text == TEXT
        client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)
