"""Points of the API that servers get wrong, asked of a running server; each test says which.

The numbers are those of the list that other servers were measured by: parameters (18 to 21), log-probabilities (23 and
26), bad values (28), the protocol (40 to 43) and what known clients send.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server

USER = [{"role": "user", "content": "What is a list?"}]


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def post(http: httpx.Client, path: str, **fields: Any) -> Any:
    return http.post(path, json=fields).raise_for_status().json()


def complete(http: httpx.Client, prompt: Any = "A list", **fields: Any) -> Any:
    fields = {"temperature": 0, "max_tokens": 12, "return_token_ids": True, **fields}
    return post(http, "/v1/completions", prompt=prompt, **fields)


def test_18_stop_token_ids_min_tokens_and_ignore_eos(http: httpx.Client) -> None:
    whole = complete(http, ignore_eos=True)["choices"][0]
    assert (whole["finish_reason"], len(whole["token_ids"])) == ("length", 12)
    stop_id = whole["token_ids"][4]
    first = whole["token_ids"].index(stop_id)
    stopped = complete(http, stop_token_ids=[stop_id], ignore_eos=True)["choices"][0]
    assert stopped["token_ids"] == whole["token_ids"][: first + 1]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop_id)
    included = complete(http, stop_token_ids=[stop_id], ignore_eos=True, include_stop_str_in_output=True)
    assert included["choices"][0]["text"].startswith(stopped["text"])
    assert len(included["choices"][0]["text"]) >= len(stopped["text"])
    later = complete(http, stop_token_ids=[stop_id], ignore_eos=True, min_tokens=10)["choices"][0]
    assert len(later["token_ids"]) >= 10
    assert stop_id not in later["token_ids"][:10]


def test_18_logit_bias_chooses_and_forbids(http: httpx.Client) -> None:
    free = complete(http, ignore_eos=True)["choices"][0]["token_ids"]
    forced = complete(http, ignore_eos=True, logit_bias={"65": 100})["choices"][0]["token_ids"]
    assert forced == [65] * 12
    without = complete(http, ignore_eos=True, logit_bias={str(free[0]): -100})["choices"][0]["token_ids"]
    assert free[0] not in without


def test_19_the_numbers_of_tokens_are_exact(http: httpx.Client) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        fields = {field: 7, "ignore_eos": True}
        answer = post(http, "/v1/chat/completions", messages=USER, **fields)
        assert answer["usage"]["completion_tokens"] == 7
        assert answer["choices"][0]["finish_reason"] == "length"
    answer = post(http, "/v1/responses", input="What is a list?", max_output_tokens=1)
    assert answer["usage"]["output_tokens"] == 1


def test_20_echo(http: httpx.Client) -> None:
    text = complete(http)["choices"][0]["text"]
    assert complete(http, echo=True)["choices"][0]["text"] == "A list" + text
    only = complete(http, echo=True, max_tokens=0)
    assert (only["choices"][0]["text"], only["usage"]["completion_tokens"]) == ("A list", 0)
    for max_tokens in (0, 1):
        scored = complete(http, echo=True, logprobs=1, max_tokens=max_tokens)
        logprobs = scored["choices"][0]["logprobs"]
        count = scored["usage"]["prompt_tokens"] + max_tokens
        assert {len(column) for column in logprobs.values()} == {count}
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        assert None not in logprobs["token_logprobs"][1:]


def test_21_every_form_of_a_prompt(http: httpx.Client) -> None:
    ids = post(http, "/tokenize", prompt="A list")["tokens"]
    text = complete(http)["choices"][0]["text"]
    for prompt in ("A list", ["A list"], ids, [ids]):
        assert [choice["text"] for choice in complete(http, prompt)["choices"]] == [text]
    both = complete(http, [ids, ids], n=2)["choices"]
    assert [(choice["index"], choice["text"]) for choice in both] == [(index, text) for index in range(4)]


def test_23_and_26_log_probabilities(http: httpx.Client) -> None:
    chat = post(http, "/v1/chat/completions", messages=USER, logprobs=True, max_tokens=3)
    assert all(entry["top_logprobs"] == [] for entry in chat["choices"][0]["logprobs"]["content"])
    choice = complete(http, logprobs=0, ignore_eos=True)["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["token_ids"]) == 12
    choice = complete(http, logprobs=5, ignore_eos=True)["choices"][0]
    logprobs = choice["logprobs"]
    for chosen, tops in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert chosen == max(tops.values())
    assert logprobs["text_offset"][0] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "temperature": -1}',
        b'{"prompt": "x", "top_p": 0}',
        b'{"prompt": "x", "n": 0}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": [-1]}',
        b'{"prompt": "x", "best_of": 0}',
        b"[" * 1_000_000,
    ],
)
def test_28_bad_values_are_400(http: httpx.Client, body: bytes) -> None:
    for stream in (b"", b', "stream": true}'):
        answer = http.post("/v1/completions", content=body[:-1] + stream if stream else body)
        assert answer.status_code == 400
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert http.get("/health").status_code == 200


def test_40_the_developers_role_and_parts_of_text(http: httpx.Client) -> None:
    fields = {"temperature": 0, "max_tokens": 8}
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *USER]
    whole = [{"role": "system", "content": "Be brief."}, *USER]
    texts = [
        post(http, "/v1/chat/completions", messages=messages, **fields)["choices"][0]["message"]["content"]
        for messages in (parts, whole)
    ]
    assert texts[0] == texts[1]
    blocks = [{"role": "user", "content": [{"type": "text", "text": "What is a list?"}]}]
    message = post(http, "/v1/messages", messages=blocks, system="Be brief.", **fields)
    assert message["content"][0]["text"] == texts[0]
    response = post(http, "/v1/responses", input=USER, instructions="Be brief.", temperature=0, max_output_tokens=8)
    assert response["output"][0]["content"][0]["text"] == texts[0]


def test_41_statuses(http: httpx.Client) -> None:
    for method, path, body, status, code in (
        ("POST", "/v1/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/responses", b'{"input": "x", "model": "other"}', 404, "model_not_found"),
        ("GET", "/v1/models/other", b"", 404, "model_not_found"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("PUT", "/v1/responses", b"", 405, "method_not_allowed"),
        ("POST", "/v1/responses", b"x" * (17 * 2**20), 413, "request_too_large"),
        ("POST", "/v1/responses", b'{"input": "%s"}' % (b"word " * 9000), 400, "context_length_exceeded"),
    ):
        answer = http.request(method, path, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path


def test_42_unknown_fields_warn(http: httpx.Client) -> None:
    for path, fields in (
        ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": USER, "max_tokens": 1}),
    ):
        answer = http.post(path, json={**fields, "frobnicate": 1})
        assert answer.status_code == 200
        assert "frobnicate" in answer.headers["warning"]
        assert "warning" not in http.post(path, json=fields).headers


def test_43_streamed_and_whole_responses_are_the_same(http: httpx.Client) -> None:
    fields = {"input": "What is a list?", "temperature": 0, "max_output_tokens": 20}
    whole = post(http, "/v1/responses", **fields)["output"][0]["content"][0]["text"]
    events = [
        httpx.Response(200, content=line.removeprefix("data: ")).json()
        for line in http.post("/v1/responses", json={**fields, "stream": True}).text.splitlines()
        if line.startswith("data: ")
    ]
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == whole
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_what_lm_eval_aiperf_and_guidellm_ask(http: httpx.Client) -> None:
    info = http.get("/tokenizer_info").raise_for_status().json()
    assert info["eos_token"]
    assert "chat_template" in info
    head = http.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert http.get("/health").status_code == 200
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/metrics", "/openapi.json"):
        assert http.options(path).status_code == 204


def test_the_description_names_all_that_is_answered(http: httpx.Client) -> None:
    """No path of it is a 404 or a 405, whatever else is wrong with an empty request."""
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = http.request(method, path.replace("{model_id}", "demo_model").replace("{response_id}", "resp_0"))
            assert answer.status_code in (200, 400) or answer.json()["error"]["code"] == "response_not_found", path
            assert str(answer.status_code) in methods[method]["responses"]
