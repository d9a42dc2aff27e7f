"""The API's own description: complete, consistent, and true of what is answered."""

import re
from typing import Any

import msgspec
import pytest

from frontend.openapi import describe_api
from frontend.protocol.status import ErrorBody
from frontend.routes import ROUTES


@pytest.fixture
def document(setup) -> dict[str, Any]:
    return setup.http.get("/openapi.json").json()


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(inner) for inner in value.values()))
    return set().union(*(references(inner) for inner in value)) if isinstance(value, list) else set()


def test_every_route_is_described(document):
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == {
        (method.lower(), re.sub(r"<(\w+)(?::\w+)?>", r"{\1}", route.path))
        for route in ROUTES
        for method in route.methods
    }
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert {"200", "400", "404", "413", "429", "503"} <= operation["responses"].keys()


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]
    found = references(document)
    assert found == {f"#/components/schemas/{name}" for name in schemas}
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert {"messages", "temperature", "top_k", "stream_options", "logit_bias"} <= chat.keys()
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]


def test_the_choice_of_tools_is_described(document):
    schemas = document["components"]["schemas"]

    def kinds(name, field):
        return {each.get("$ref", each.get("type")) for each in schemas[name]["properties"][field]["anyOf"]}

    assert kinds("ChatCompletionRequest", "tool_choice") == {"string", "null", "#/components/schemas/ToolChoice"}
    assert kinds("ResponsesRequest", "tool_choice") == {"string", "null", "#/components/schemas/FunctionChoice"}
    assert kinds("Response", "tool_choice") == {"string", "#/components/schemas/FunctionChoice"}
    assert schemas["AllowedTools"]["properties"]["mode"]["enum"] == ["auto", "required"]
    assert set(schemas["AllowedTools"]["required"]) == {"mode", "tools"}


def test_a_stream_is_described_by_its_events(document):
    content = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    event = content["text/event-stream"]["schema"]
    assert event["required"] == ["data"]
    data, end = event["properties"]["data"]["anyOf"]
    assert data["contentSchema"] == content["application/json"]["schema"]
    assert end == {"const": "[DONE]"}


def test_what_stands_behind_a_path_is_described(document):
    parameters = document["paths"]["/v1/responses/{response_id}"]["get"]["parameters"]
    assert [(one["name"], one["in"], one["required"]) for one in parameters] == [
        ("response_id", "path", True),
        ("stream", "query", False),
        ("starting_after", "query", False),
    ]
    assert (parameters[2]["schema"]["type"], parameters[2]["schema"]["minimum"]) == ("integer", 0)
    assert "parameters" not in document["paths"]["/v1/responses"]["post"]


def test_answers_are_as_described(setup):
    by_path = {route.path: route.answer for route in ROUTES if "GET" in route.methods}
    for path in ("/v1/models", "/health", "/ready", "/version"):
        body = setup.http.get(path).content
        assert msgspec.json.encode(msgspec.json.decode(body, type=by_path[path])) == body
    setup.say("x")
    route = next(route for route in ROUTES if route.path == "/v1/chat/completions")
    body = setup.chat(logprobs=True, top_logprobs=2).content
    assert msgspec.json.encode(msgspec.json.decode(body, type=route.answer)) == body
    assert msgspec.json.decode(setup.chat(temperature=-1).content, type=ErrorBody).error.param == "temperature"


def test_keys_are_described_where_they_are_wanted():
    document = describe_api(wants_keys=True)
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in describe_api(wants_keys=False)


def test_the_page_needs_no_other_host(setup):
    page = setup.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "openapi.json" in page.text
    assert not re.findall(r"https?://|src=", page.text)


def test_tokenizer_info(setup):
    info = setup.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|end|>"
    assert "<|assistant|>" in info["chat_template"]
