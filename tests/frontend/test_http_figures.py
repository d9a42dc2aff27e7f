"""The figures of answers over HTTP: usage at each kind of end, what the engine is told of it, log-probabilities."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine_core.ipc.messages import AbortRequest
from tests.frontend.support import Setup, deltas_of, events_of, running_setup
from tests.frontend.test_http_tools import CALL, LOOK

NUM_CACHED = 2
MESSAGES = [{"role": "user", "content": "Hello"}]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
INPUT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 50},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 50},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 50},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 50, "model": "alias"},
}
STOPS = [
    ("/v1/chat/completions", {"stop": ["two"]}),
    ("/v1/completions", {"stop": "two"}),
    ("/v1/messages", {"stop_sequences": ["two"]}),
]


@pytest.fixture(scope="module")
def module_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    formats = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    with running_setup(tmp_path_factory.mktemp("run"), **formats) as setup:
        yield setup


def ask(setup: Setup, path: str, **fields: Any) -> httpx.Response:
    response = setup.post(path, {**INPUT[path], **fields})
    assert response.status_code == 200, response.text
    return response


def data_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of an event stream."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def counts_of(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt tokens, those of them that the cache had, output tokens, whatever the protocol calls them."""
    if "cache_read_input_tokens" in usage:
        cached = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + cached, cached, usage["output_tokens"]
    kinds = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
    cached = usage[f"{kinds[0]}_tokens_details"]["cached_tokens"]
    assert usage["total_tokens"] == usage[f"{kinds[0]}_tokens"] + usage[f"{kinds[1]}_tokens"]
    return usage[f"{kinds[0]}_tokens"], cached, usage[f"{kinds[1]}_tokens"]


def counts_of_stream(setup: Setup, path: str, **fields: Any) -> tuple[int, int, int]:
    """Those of its last event that has any; Anthropic's has the rest of its usage in its first."""
    if path.endswith("completions"):
        fields["stream_options"] = {"include_usage": True}
    events = data_of(ask(setup, path, stream=True, **fields))
    if path == "/v1/responses":
        return counts_of(events[-1]["response"]["usage"])
    if path != "/v1/messages":
        return counts_of(events[-1]["usage"])
    return counts_of({**events[0]["message"]["usage"], **events[-2]["usage"]})


def reasons(setup: Setup) -> list[str]:
    """What the engine was told of requests that the frontend ended."""
    return [abort.reason for abort in setup.core.received(AbortRequest)]


@pytest.mark.parametrize(("path", "fields"), STOPS)
def test_a_stop_string_is_no_abort(setup: Setup, path: str, fields: dict[str, Any]) -> None:
    """The engine has not ended the request, so its own last figures are not there."""
    ids = setup.tokenizer.encode("one two").ids
    setup.say("one two", num_cached_tokens=NUM_CACHED, reason=None)
    for counts in (counts_of(ask(setup, path, **fields).json()["usage"]), counts_of_stream(setup, path, **fields)):
        assert counts[1:] == (NUM_CACHED, len(ids))
        assert counts[0] > NUM_CACHED
    setup.core.wait_for(lambda core: len(core.received(AbortRequest)) == 2)
    assert reasons(setup) == ["stop", "stop"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"tools": [LOOK], "parallel_tool_calls": False}),
        ("/v1/responses", {"tools": [{"type": "function", **LOOK["function"]}], "parallel_tool_calls": False}),
        (
            "/v1/messages",
            {
                "tools": [{"name": "look", "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
        ),
    ],
)
def test_a_first_call_that_is_the_last_is_no_abort(setup: Setup, path: str, fields: dict[str, Any]) -> None:
    setup.say(CALL, num_cached_tokens=NUM_CACHED, reason=None)
    fields = {**fields, "max_output_tokens" if path == "/v1/responses" else "max_tokens": 300}
    num_tokens = len(setup.tokenizer.encode(CALL).ids)
    assert counts_of(ask(setup, path, **fields).json()["usage"])[1:] == (NUM_CACHED, num_tokens)
    assert counts_of_stream(setup, path, **fields)[1:] == (NUM_CACHED, num_tokens)
    setup.core.wait_for(lambda core: len(core.received(AbortRequest)) == 2)
    assert reasons(setup) == ["stop", "stop"]


@pytest.mark.parametrize("path", PATHS)
def test_the_models_own_end_and_the_length(setup: Setup, path: str) -> None:
    ids = setup.tokenizer.encode("one two").ids
    for reason in ("stop", "length"):
        setup.say_ids(ids, reason=reason, num_cached_tokens=NUM_CACHED)
        assert counts_of(ask(setup, path).json()["usage"])[1:] == (NUM_CACHED, len(ids))
        assert counts_of_stream(setup, path)[1:] == (NUM_CACHED, len(ids))
    assert reasons(setup) == []


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_hangs_up_is_an_abort(setup: Setup, path: str) -> None:
    setup.say("one two", reason=None)
    with setup.http.stream("POST", path, json={**INPUT[path], "stream": True}) as response:
        next(response.iter_lines())
    setup.core.wait_for(lambda core: core.received(AbortRequest))
    assert reasons(setup) == ["abort"]


def test_usage_that_goes_with_a_stream(setup: Setup) -> None:
    """Cached tokens are known from the first chunk on; reasoning is counted as it comes."""
    setup.say("<think>a</think>b", num_cached_tokens=NUM_CACHED)
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = data_of(ask(setup, "/v1/chat/completions", stream=True, stream_options=options))
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events} == {NUM_CACHED}
    counts = [event["usage"]["completion_tokens_details"]["reasoning_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == len(setup.tokenizer.encode("<think>a</think>").ids)
    assert events[-1]["usage"]["completion_tokens"] == counts[-1] + 1


def test_several_choices(setup: Setup) -> None:
    setup.say("<think>hm</think>one two", num_cached_tokens=NUM_CACHED)
    usage = ask(setup, "/v1/chat/completions", n=3, stop="two").json()["usage"]
    one = len(setup.tokenizer.encode("<think>hm</think>").ids)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3 * one}
    assert usage["prompt_tokens_details"] == {"cached_tokens": NUM_CACHED}
    both = ask(setup, "/v1/completions", prompt=["a", "b"], n=2).json()["usage"]
    assert both["prompt_tokens_details"] == {"cached_tokens": 2 * NUM_CACHED}


@pytest.mark.parametrize(
    ("text", "fields", "content"),
    [
        ("<think>\nHm: ü.\n</think>\n\nGrüße 🦊", {}, "Grüße 🦊"),
        (f"I look.\n{CALL}", {"tools": [LOOK]}, "I look."),
        (CALL, {"tools": [LOOK]}, ""),
        ("one two three", {"stop": [" two"]}, "one"),
        ("one two three", {"stop": [" two"], "include_stop_str_in_output": True}, "one two"),
        ("one<|user|> two", {}, "one two"),
        ("one<|user|> two", {"stop": ["<|user|>"]}, "one"),
        ("one<|user|> two", {"skip_special_tokens": False}, "one<|user|> two"),
    ],
)
def test_log_probabilities_are_those_of_the_content(
    setup: Setup, text: str, fields: dict[str, Any], content: str
) -> None:
    setup.say(text)
    wanted = [setup.tokenizer.decode([one], skip_special_tokens=False) for one in setup.tokenizer.encode(content).ids]
    fields = {**fields, "logprobs": True, "max_tokens": 300}
    choice = ask(setup, "/v1/chat/completions", **fields).json()["choices"][0]
    assert (choice["message"]["content"] or "") == content
    streamed = deltas_of(events_of(ask(setup, "/v1/chat/completions", stream=True, **fields)))
    assert "".join(delta["delta"].get("content", "") for delta in streamed) == content
    in_stream = [entry for delta in streamed if delta["logprobs"] for entry in delta["logprobs"]["content"]]
    for entries in (choice["logprobs"]["content"], in_stream):
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == content
        assert len(entries) == len(wanted)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_response(setup: Setup, stream: bool) -> None:
    setup.say("<think>\nHm.\n</think>\n\nGrüße")
    fields = {"include": ["message.output_text.logprobs"], "stream": stream}
    response = ask(setup, "/v1/responses", **fields)
    body = data_of(response)[-1]["response"] if stream else response.json()
    part = body["output"][-1]["content"][0]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() == part["text"] == "Grüße"
    num_reasoning = len(setup.tokenizer.encode("<think>\nHm.\n</think>").ids)
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": num_reasoning}


@pytest.mark.parametrize("num_choices", [1, 2])
@pytest.mark.parametrize("prompt", ["Grüße 🦊", "Hello"])
def test_text_offsets_of_completions(setup: Setup, prompt: str, num_choices: int) -> None:
    """Every entry's offset is where its text begins, behind an echo too, in whole answers and streams."""
    text = "ü🦊 one<|user|> two"
    setup.say(text)
    fields = {"prompt": prompt, "logprobs": 0, "n": num_choices}
    ids = setup.tokenizer.encode(text).ids
    before = [setup.tokenizer.decode(ids[:place]).rstrip("�") for place in range(len(ids))]
    for choice in ask(setup, "/v1/completions", **fields).json()["choices"]:
        assert choice["logprobs"]["text_offset"] == [len(one) for one in before]
    events = events_of(ask(setup, "/v1/completions", stream=True, **fields))
    for index in range(num_choices):
        deltas = [delta["logprobs"] for delta in deltas_of(events, index) if delta["logprobs"]]
        assert [offset for one in deltas for offset in one["text_offset"]] == [len(one) for one in before]
    stopped = ask(setup, "/v1/completions", stop=["two"], **fields).json()["choices"][0]
    assert stopped["text"] == "ü🦊 one "
    assert stopped["logprobs"]["text_offset"] == [len(one) for one in before[: len(stopped["logprobs"]["tokens"])]]
