"""Structured output with the demo model: what it answers keeps to what was asked, whatever else happens."""

import concurrent.futures
import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.json_validator import is_valid
from tests.e2e.server import Server

SCHEMAS: dict[str, Any] = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "ref": {
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "maximum": 9}, "y": {"type": "integer", "maximum": 9}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/point"},
        "minItems": 2,
        "maxItems": 3,
    },
    "recursive": {
        "type": "object",
        "properties": {"value": {"enum": [1, 2]}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
    "non_ascii": {"enum": ["grün", "日本語", "🦊", '"quoted"\n', "<think>"]},
    "any_of": {
        "anyOf": [{"type": "boolean"}, {"const": {"größe": None}}, {"type": "integer", "minimum": 100, "maximum": 999}]
    },
}
SLOW: Any = {"type": "integer", "multipleOf": 999_983}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def response_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("thinks", [False, True])
def test_answers_validate(server: Server, client: openai.OpenAI, name: str, thinks: bool) -> None:
    """At several temperatures and with several choices; one that was cut off says so."""
    num_complete = 0
    for temperature in (0.0, 1.0, 1.5):
        answer = client.chat.completions.create(
            model=server.model,
            messages=QUESTION,
            response_format=response_format(SCHEMAS[name]),
            temperature=temperature,
            n=1 if temperature == 0 else 4,
            seed=3,
            max_tokens=300,
            extra_body={"chat_template_kwargs": {"enable_thinking": thinks}},
        )
        for choice in answer.choices:
            message: Any = choice.message
            assert choice.finish_reason in ("stop", "length")
            assert message.refusal is None
            if choice.finish_reason == "stop":
                assert is_valid(json.loads(message.content), SCHEMAS[name]), message.content
                num_complete += 1
            if thinks and temperature == 0:
                assert message.reasoning
    assert num_complete >= 1, "without thinking the recursive one is mostly cut off"


@pytest.mark.slow
def test_streamed_is_the_same(server: Server, client: openai.OpenAI) -> None:
    asked: Any = {
        "model": server.model,
        "messages": QUESTION,
        "response_format": response_format(SCHEMAS["flat"]),
        "temperature": 0,
        "max_tokens": 100,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.content
    assert streamed == whole
    assert is_valid(json.loads(whole or ""), SCHEMAS["flat"])


def test_truncation_is_length(server: Server, client: openai.OpenAI) -> None:
    for max_tokens in (1, 3, 6):
        choice = client.chat.completions.create(
            model=server.model,
            messages=QUESTION,
            response_format=response_format(SCHEMAS["flat"]),
            max_tokens=max_tokens,
        ).choices[0]
        assert choice.finish_reason == "length"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "wanted"),
    [
        ({"regex": r"[a-f]{4}/\d{2}"}, r"[a-f]{4}/[0-9]{2}"),
        ({"choice": ["ja", "nein", "vielleicht"]}, "ja|nein|vielleicht"),
        ({"grammar": 'root ::= "<" [0-9] [0-9]? ">"'}, "<[0-9]{1,2}>"),
        ({"grammar": 'start: "a" B~2\nB: "b" | "c"'}, "a[bc]{2}"),
        ({"json": json.dumps(SCHEMAS["any_of"]), "disable_any_whitespace": True}, r"\S+"),
    ],
)
def test_other_structures(server: Server, structure: dict[str, Any], wanted: str) -> None:
    chat = {
        "messages": [{"role": "user", "content": "What is a list?"}],
        "max_tokens": 250,
        "temperature": 1.2,
        "seed": 5,
        "n": 3,
        "structured_outputs": structure,
    }
    completion = {"prompt": "It is", "max_tokens": 60, "seed": 5, "n": 3, "structured_outputs": structure}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        chats = http.post("/v1/chat/completions", json=chat).json()["choices"]
        texts = http.post("/v1/completions", json=completion).json()["choices"]
    complete = [one for one in chats if one["finish_reason"] == "stop"]  # some reason for very long
    assert complete
    for text in [one["message"]["content"] for one in complete] + [one["text"] for one in texts]:
        assert re.fullmatch(wanted, text), text


def test_a_structural_tag_binds_what_is_tagged(server: Server) -> None:
    tag = {
        "structures": [{"begin": "the <f", "schema": SCHEMAS["any_of"], "end": "/>"}],
        "triggers": ["the"],
    }
    body = {
        "messages": [{"role": "user", "content": "What is a list?"}],
        "max_tokens": 60,
        "temperature": 0,
        "structured_outputs": {"structural_tag": tag},
    }
    text = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"][
        "content"
    ]
    assert text
    for rest in text.split("the")[1:-1]:
        assert rest.startswith(" <f")


@pytest.mark.slow
def test_formats_of_a_structural_tag(server: Server) -> None:
    """Free text in a tag, then one call at once, JSON in it, as a response format and as a structured output."""
    call = {
        "begin": "<call=get_weather>",
        "content": {"type": "json_schema", "json_schema": WEATHER["function"]["parameters"]},
        "end": "</call>",
    }
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "sequence",
            "elements": [
                {"type": "tag", "begin": "<note>", "content": {"type": "any_text", "max_chars": 40}, "end": "</note>"},
                {
                    "type": "triggered_tags",
                    "triggers": ["<call="],
                    "tags": [call],
                    "at_least_one": True,
                    "stop_after_first": True,
                },
            ],
        },
    }
    body = {"messages": QUESTION, "max_tokens": 200, "temperature": 1.0, "seed": 1, "n": 4}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        answers = [
            http.post("/v1/chat/completions", json={**body, **field}).json()["choices"]
            for field in ({"structured_outputs": {"structural_tag": tag}}, {"response_format": tag})
        ]
        del tag["format"]["elements"][0]["content"]
        refused = http.post("/v1/chat/completions", json={**body, "response_format": tag})
    for choice in itertools.chain(*answers):
        assert choice["finish_reason"] == "stop"
        found = re.fullmatch(
            r"<note>(.{0,40})</note><call=get_weather>(.*)</call>", choice["message"]["content"], re.DOTALL
        )
        assert found
        assert "</note>" not in found[1]
        assert is_valid(json.loads(found[2]), WEATHER["function"]["parameters"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format.format.elements[0].content"


@pytest.mark.slow
def test_a_forced_call(server: Server, client: openai.OpenAI) -> None:
    asked: Any = {
        "model": server.model,
        "messages": QUESTION,
        "tools": [WEATHER, CLOCK],
        "max_tokens": 300,
        "temperature": 1.0,
    }
    for seed in range(4):
        required = client.chat.completions.create(tool_choice="required", seed=seed, **asked).choices[0]
        assert required.finish_reason == "tool_calls"
        assert not required.message.content
        for call in required.message.tool_calls or []:
            tool: Any = {"get_weather": WEATHER, "get_time": CLOCK}[call.function.name]
            assert is_valid(json.loads(call.function.arguments), tool["function"]["parameters"])
        assert required.message.tool_calls

        one = client.chat.completions.create(tool_choice="required", parallel_tool_calls=False, seed=seed, **asked)
        assert len(one.choices[0].message.tool_calls or []) == 1

        named: Any = {"type": "function", "function": {"name": "get_time"}}
        choice = client.chat.completions.create(tool_choice=named, seed=seed, **asked).choices[0]
        assert choice.finish_reason == "stop"
        (call,) = choice.message.tool_calls or []
        assert call.function.name == "get_time"
        assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")


def test_a_forced_call_after_reasoning(server: Server, client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=300,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    ).choices[0]
    message: Any = choice.message
    assert message.reasoning
    assert choice.finish_reason == "tool_calls"


@pytest.mark.slow
def test_tools_and_a_structure_coexist(server: Server, client: openai.OpenAI) -> None:
    """Either calls or an answer that keeps to it."""
    asked: Any = {"model": server.model, "tools": [WEATHER, CLOCK], "response_format": response_format(SCHEMAS["flat"])}
    called = client.chat.completions.create(messages=QUESTION, temperature=0, max_tokens=200, **asked).choices[0]
    assert called.finish_reason == "tool_calls"
    assert not called.message.content
    answer = client.chat.completions.create(
        messages=QUESTION, temperature=0, max_tokens=200, tool_choice="none", **asked
    ).choices[0]
    assert answer.message.tool_calls is None
    assert is_valid(json.loads(answer.message.content or ""), SCHEMAS["flat"])


def test_a_strict_tool_leaves_the_rest_of_the_text_free(server: Server, client: openai.OpenAI) -> None:
    asked: Any = {
        "model": server.model,
        "messages": [{"role": "user", "content": "What does len do?"}],
        "temperature": 0,
    }
    lenient: Any = {**CLOCK, "function": {**CLOCK["function"], "strict": False}}
    answers = [
        client.chat.completions.create(tools=[tool], max_tokens=40, **asked).choices[0].message
        for tool in (CLOCK, lenient)
    ]
    assert answers[0].content
    assert answers[0].tool_calls is None
    assert answers[1].tool_calls is None


def test_the_responses_endpoint(server: Server, client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMAS["flat"], "strict": True}}
    answer = client.responses.create(model=server.model, input="Who?", text=form, temperature=0, max_output_tokens=300)
    assert is_valid(json.loads(answer.output_text), SCHEMAS["flat"])
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def refused(call: Callable[[], Any], param: str) -> str:
    """The sentence of a 400 that names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    assert caught.value.param == param, caught.value
    return caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused(server: Server, client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": server.model, "messages": QUESTION, "stream": stream}
    create = client.chat.completions.create
    unsupported = {"type": "object", "not": {"required": ["a"]}}
    place = "response_format.json_schema.schema.not"
    refused(lambda: create(response_format=response_format(unsupported), **asked), place)
    strict: Any = {"type": "function", "function": {"name": "f", "strict": True, "parameters": unsupported}}
    refused(lambda: create(tools=[strict], **asked), "tools")
    refused(lambda: create(extra_body={"guided_regex": "a(?=b)"}, **asked), "guided_regex")
    form: Any = {"format": {"type": "json_schema", "name": "a", "schema": unsupported}}
    place = "text.format.schema.not"
    refused(lambda: client.responses.create(model=server.model, input="x", text=form, stream=stream), place)


@pytest.mark.slow
def test_over_budget_is_refused_while_others_stream(server: Server, client: openai.OpenAI) -> None:
    """Nothing is held up by it: no gap of the others' streams is half as long, however fast the machine is."""
    arrivals: list[float] = []
    is_streaming, stop = threading.Event(), threading.Event()

    def stream() -> None:
        while not stop.is_set():
            for _ in client.completions.create(model=server.model, prompt="def f", max_tokens=200, stream=True):
                arrivals.append(time.monotonic())
                is_streaming.set()

    def refuse(schema: Any) -> str:
        form = response_format(schema)
        create = client.chat.completions.create
        return refused(
            lambda: create(model=server.model, messages=QUESTION, max_tokens=5, response_format=form),
            "response_format.json_schema",
        )

    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as at_end:
        reading = pool.submit(stream)
        at_end.callback(stop.set)
        assert is_streaming.wait(60)
        start = time.monotonic()
        sentence = refuse(SLOW)
        end = time.monotonic()
        assert "seconds" in sentence or "memory" in sentence
        assert "too large" in refuse(
            {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}}
        )
        huge = response_format({"enum": [f"{number}-{'x' * 30}" for number in range(20_000)]})
        answer = client.chat.completions.create(
            model=server.model, messages=QUESTION, max_tokens=5, response_format=huge
        )
        assert answer.choices
    reading.result()
    times = [start, *(one for one in arrivals if start < one < end), end]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < (end - start) / 2


def test_bodies_that_are_no_schemas(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        nested = b'{"messages": [], "response_format": ' + b"[" * 10_000_000 + b"]" * 10_000_000 + b"}"
        assert http.post("/v1/chat/completions", content=nested).status_code in (400, 413)
        deep: Any = {"type": "string"}
        for _ in range(100):
            deep = {"type": "array", "items": deep}
        body = {"messages": QUESTION, "response_format": response_format(deep)}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("response_format.json_schema.schema")
        assert http.get("/health").status_code == 200
