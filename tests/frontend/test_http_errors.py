"""What bad input gets: OpenAI's error object with the field's name, and nothing else disturbed."""

import json
import socket

import httpx
import pytest

from engine_core.ipc.messages import AddRequest
from tests.frontend.support import MAX_MODEL_LEN, MODEL, VOCAB_SIZE, events_of, running_setup

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]


def tool(**function: object) -> dict:
    return {"type": "function", "function": {"name": "f", **function}}


SCHEMA = "response_format.json_schema.schema"


def schema(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


TOOL = tool(parameters={"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]})


def allowed(*references: object, mode: object = "auto") -> dict:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(references)}}


F = {"type": "function", "function": {"name": "f"}}
ALLOWED = "tool_choice.allowed_tools"


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"].endswith((".", "?", ")")) or ":" in body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"top_n_sigma": -1}, "top_n_sigma"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),  # this model has no format for calls
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": "f"}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"allowed_tools": {"mode": "auto", "tools": [F]}}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, ALLOWED),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [F]}}, ALLOWED),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": []}}, ALLOWED),
        ({"tools": [TOOL], "tool_choice": allowed(F, mode="none")}, f"{ALLOWED}.mode"),
        ({"tools": [TOOL], "tool_choice": allowed(F, mode=None)}, f"{ALLOWED}.mode"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [F]}}},
            f"{ALLOWED}.mode",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            f"{ALLOWED}.tools",
        ),
        ({"tools": [TOOL], "tool_choice": allowed()}, f"{ALLOWED}.tools"),
        ({"tools": [TOOL], "tool_choice": allowed("f")}, f"{ALLOWED}.tools[0]"),
        ({"tools": [TOOL], "tool_choice": allowed(F, F)}, f"{ALLOWED}.tools[1].function.name"),
        ({"tools": [TOOL], "tool_choice": allowed(F, tool(name="g"))}, f"{ALLOWED}.tools[1].function.name"),
        ({"tool_choice": allowed(F)}, f"{ALLOWED}.tools[0].function.name"),  # there are no tools
        ({"tools": [TOOL], "tool_choice": allowed({"type": "function"})}, f"{ALLOWED}.tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": allowed({"type": "mcp"})}, f"{ALLOWED}.tools[0].type"),
        ({"tools": [TOOL], "tool_choice": allowed({"function": {"name": "f"}})}, f"{ALLOWED}.tools[0].type"),
        ({"tools": [TOOL], "tool_choice": allowed(F)}, "tool_choice"),  # this model has no format for calls
        ({"tools": [TOOL], "tool_choice": allowed(F, mode="required")}, "tool_choice"),
        ({"tools": [TOOL] * 2}, "tools[1].function.name"),
        ({"tools": [tool(name="two words")]}, "tools[0].function.name"),
        ({"tools": [tool(strict=True)]}, "tools"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
        (
            {"tools": [TOOL, tool(name="g", parameters={"properties": {"a": {"type": "text"}}})]},
            "tools[1].function.parameters.properties.a.type",
        ),
        ({"tools": [tool(parameters={"required": "a"})]}, "tools[0].function.parameters.required"),
        ({"tools": [tool(parameters={"anyOf": [3]})]}, "tools[0].function.parameters.anyOf[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": schema({"type": "object", "properties": []})}, f"{SCHEMA}.properties"),
        ({"response_format": schema({"anyOf": [{"type": "what"}]})}, f"{SCHEMA}.anyOf[0].type"),
        ({"response_format": schema({}), "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_choice": ['"' * 1000] * 400}, "guided_choice"),  # each quote is written as four characters
        ({"response_format": schema({}), "min_tokens": 3}, "min_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * 20_000}}, "chat_template_kwargs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["x" * 20_000]}, "bad_words"),
        ({"bad_words": [f"{i}" for i in range(129)]}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"regexp": "a+"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": 3}}}, "structured_outputs.json.type"),
        ({"structured_outputs": {"grammar": "what: 'a'"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": {"triggers": []}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"structural_tag": {"format": {}}}}, "structured_outputs.structural_tag.format.type"),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "regex", "pattern": "("}}},
            "response_format.format.pattern",
        ),
        ({"structured_outputs": {"grammar": "root ::= other"}}, "structured_outputs.grammar"),
        ({"guided_json": {"type": 3}}, "guided_json.type"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"use_beam_search": True, "n": 2, "guided_choice": ["a", "b"]}, "use_beam_search"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"priority": 2**40}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"request_id": "x" * 200}, "request_id"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(setup, fields, param, stream):
    setup.say("x")
    body = {"model": MODEL, "messages": USER, "stream": stream, **fields}
    if stream and ("stream_options" in fields or "stream" in fields):
        pytest.skip("is right with a stream")
    error = error_of(setup.post(CHAT, body), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert setup.core.received(AddRequest) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 103}, "n"),
        ({"prompt": [[1], 2]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [VOCAB_SIZE]}, "prompt"),
        ({"prompt": [[1], [VOCAB_SIZE]]}, "prompt[1]"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3, "n": 4}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"n": 129}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 103, "prompt": ["a"] * 5}, "best_of"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": MAX_MODEL_LEN + 1}, "truncate_prompt_tokens"),
        ({"use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"use_beam_search": True, "n": 2, "logit_bias": {"3": 1}}, "use_beam_search"),
        ({"use_beam_search": True, "n": 2, "guided_choice": ["a", "b"]}, "use_beam_search"),
        ({"use_beam_search": True, "n": 11}, "n"),
        ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping"),
        ({"use_beam_search": True, "length_penalty": 1000}, "length_penalty"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(setup, fields, param):
    error = error_of(setup.post("/v1/completions", {"model": MODEL, "prompt": "Hi", **fields}), 400)
    assert error["param"] == param


def test_a_missing_field_is_named(setup):
    bodies = {"messages": (CHAT, {"model": MODEL}), "prompt": ("/v1/completions", {"model": MODEL})}
    bodies["messages[0].role"] = (CHAT, {"messages": [{"content": "Hi"}]})
    for field, (path, body) in bodies.items():
        error = error_of(setup.post(path, body), 400)
        assert (error["param"], error["message"]) == (field, f"{field} must be given.")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "\\ud800 x"}]}',
        b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"metadata": ' + b'{"a":' * 5000,
        b'{"x": ' + b"[" * 100_000,
    ],
)
def test_malformed_json(setup, body):
    error_of(setup.http.post(CHAT, content=body), 400)


def test_unknown_models_and_paths_and_methods(setup):
    for path, body in (
        (CHAT, {"messages": USER}),
        ("/v1/completions", {"prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        error = error_of(setup.post(path, {"model": "nope", **body}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error_of(setup.http.get("/nothing"), 404)["code"] == "not_found"
    refusal = setup.http.get(CHAT)
    assert error_of(refusal, 405)["code"] == "method_not_allowed"
    assert "POST" in refusal.headers["allow"]
    error_of(setup.http.delete("/health"), 405)


def test_a_prompt_beyond_the_context(setup):
    ids = [5] * MAX_MODEL_LEN
    for stream in (False, True):
        error = error_of(setup.complete(ids, stream=stream), 400)
        assert error["code"] == "context_length_exceeded"
        assert error["message"].count(str(MAX_MODEL_LEN)) == 2
    error = error_of(setup.complete([5] * 10, max_tokens=MAX_MODEL_LEN), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(setup, chunked):
    data = b'{"messages": "' + b"x" * (2**20) + b'"}'
    content = iter([data[: 2**19], data[2**19 :]]) if chunked else data
    error = error_of(setup.http.post(CHAT, content=content), 413)
    assert error["code"] == "request_too_large"
    assert setup.http.get("/health").status_code == 200


def test_unknown_fields_are_ignored_with_a_warning(setup):
    setup.say("x")
    response = setup.chat(frobnicate=1, **{"bad\r\nname": 2})
    assert response.status_code == 200
    assert response.headers["warning"] == '299 quire "Ignored unknown fields: frobnicate, (unprintable)"'
    assert setup.chat(stream=True, other=1).headers["warning"].endswith('other"')
    assert "warning" not in setup.chat().headers


def test_unknown_fields_are_refused_when_strict(tmp_path):
    with running_setup(tmp_path, strict_requests=True) as strict:
        strict.say("x")
        error = error_of(strict.chat(frobnicate=1), 400)
        assert (error["param"], error["code"]) == ("frobnicate", "unknown_field")
        assert strict.chat().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("overloaded", 429),
        ("invalid_request", 400),
        ("context_length_exceeded", 400),
        ("deadline_exceeded", 504),
        ("shutting_down", 503),
        ("resources_exhausted", 503),
    ],
)
def test_the_engines_refusals(setup, stream, code, status):
    setup.say_ids([], error=(code, "The engine says no.", 3.2))
    response = setup.chat(stream=stream)
    error = error_of(response, status)
    assert (error["code"], error["message"]) == (code, "The engine says no.")
    assert response.headers.get("retry-after") == ("3" if status in (429, 503) else None)


def test_a_failure_midway_is_an_event(tmp_path):
    with running_setup(tmp_path) as own:
        own.say("one two three", endless=True)
        own.core.pause()
        own.core.allow_steps(3)
        with own.http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            own.core.stop()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        error = json.loads(rest[-2].removeprefix("data: "))["error"]
        assert error["code"] == "engine_dead"
        assert error_of(own.chat(), 503)["code"] == "engine_dead"
        assert error_of(own.http.get("/ready"), 503)["code"] == "engine_dead"
        assert own.http.get("/health").status_code == 200


def test_a_bad_request_disturbs_no_neighbour(setup):
    setup.say("one two three", endless=True)
    setup.core.pause()
    setup.core.allow_steps(2)
    with setup.http.stream("POST", CHAT, json={"messages": USER, "stream": True, "max_tokens": 9}) as response:
        setup.core.wait_for(lambda core: core.num_running == 1)
        with httpx.Client(base_url=setup.url) as other:
            for body in (b"{", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'):
                error_of(other.post(CHAT, content=body), 400)
        setup.core.resume()
        response.read()
    assert events_of(response)[-1] == "[DONE]"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bytes_that_are_not_http_get_the_same_shape(setup, data):
    port = int(setup.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"413")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_model_without_a_chat_template(tmp_path):
    with running_setup(tmp_path, chat_template="") as own:
        own.say("x")
        assert own.complete().status_code == 200
