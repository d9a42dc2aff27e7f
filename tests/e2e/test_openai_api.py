"""A running server through the `openai` package and through plain HTTP where the package would not let us misbehave."""

import concurrent.futures
import http.client
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import Server

MESSAGES: Any = [{"role": "user", "content": "What is a list?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}


def metrics(server: Server) -> dict[str, float]:
    """Samples by name with labels, `model_name` and `engine` left out of the key."""
    lines = httpx.get(f"{server.url}/metrics").raise_for_status().text.splitlines()
    samples = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            base, _, labels = name.partition("{")
            kept = [label for label in labels.rstrip("}").split(",") if label.startswith("finished_reason")]
            samples[base + "".join(kept)] = float(value)
    return samples


def wait_for_metrics(server: Server, **wanted: float) -> None:
    """Asks until the values are there; the test's own time limit ends a wait in vain."""
    while True:
        samples = metrics(server)
        if all(samples[f"vllm:{name}"] == value for name, value in wanted.items()):
            return


def test_models_and_status(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [server.model] == ["demo_model"]
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200, path


def test_the_report_at_the_start(server: Server) -> None:
    report = "".join(server.report)
    for part in ("demo_model", "weights", "KV cache", "2,000 blocks of 16 tokens", "32,000 tokens"):
        assert part in report
    assert any("weights" in line and "MiB" in line for line in server.errors())


def test_chat(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=20)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 20


def test_completions_of_several_prompts(server: Server, client: openai.OpenAI) -> None:
    answer = client.completions.create(model=server.model, prompt=["A list", "The file"], max_tokens=8, n=2, **GREEDY)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text != answer.choices[2].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * 8


def test_a_stream_has_the_whole_text(server: Server, client: openai.OpenAI) -> None:
    arguments: Any = {"model": server.model, "messages": MESSAGES, "max_tokens": 40, **GREEDY}
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40


def test_stop_strings(server: Server, client: openai.OpenAI) -> None:
    arguments: Any = {"model": server.model, "prompt": "The function", "max_tokens": 40, **GREEDY}
    text = client.completions.create(**arguments).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    choice = client.completions.create(**arguments, stop=[stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
    streamed = client.completions.create(**arguments, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_a_seed_repeats_alone_and_under_load(server: Server, client: openai.OpenAI) -> None:
    def sample(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=server.model, messages=MESSAGES, max_tokens=16, seed=seed, temperature=2.0
        )
        return answer.choices[0].message.content

    alone = [sample(1), sample(2)]
    assert alone[0] != alone[1]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(sample, [1, 2] * 6))
    assert crowd == alone * 6


def test_logprobs(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    ends_with_eos = answer.choices[0].finish_reason == "stop"
    assert len(logprobs.content) == answer.usage.completion_tokens - ends_with_eos
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0
    data = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert data.decode() == answer.choices[0].message.content


@pytest.mark.slow
def test_a_stop_string_counts_as_a_stop(server: Server, client: openai.OpenAI) -> None:
    """Text completion and chat, whole and streamed: none is an abort, and each has its cached tokens."""
    wait_for_metrics(server, num_requests_running=0)
    before = metrics(server)
    arguments: Any = {"model": server.model, "max_tokens": 200, **GREEDY}
    text = client.completions.create(prompt="The function", **arguments).choices[0].text
    stop = text[len(text) // 3 : len(text) // 3 + 3]
    whole = client.completions.create(prompt="The function", stop=[stop], **arguments)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    streamed = client.completions.create(
        prompt="The function", stop=[stop], stream=True, stream_options={"include_usage": True}, **arguments
    )
    assert [chunk.usage for chunk in streamed][-1] == whole.usage
    wait_for_metrics(server, num_requests_running=0)
    ended = {
        reason: metrics(server)[key] - before[key]
        for reason in ("stop", "length", "abort")
        for key in (f'vllm:request_success_totalfinished_reason="{reason}"',)
    }
    assert (ended["stop"] + ended["length"], ended["abort"]) == (3, 0)
    assert ended["stop"] >= 2


@pytest.mark.slow
def test_thirty_two_at_once(server: Server, client: openai.OpenAI) -> None:
    def stream(number: int) -> int:
        events = client.completions.create(
            model=server.model,
            prompt="word " * (number + 1),
            max_tokens=10 + number,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
        return next(chunk.usage.completion_tokens for chunk in events if chunk.usage is not None)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert list(pool.map(stream, range(32))) == [10 + number for number in range(32)]
    wait_for_metrics(server, num_requests_running=0, num_kv_blocks_owned=0)


def test_a_disconnect_frees_the_blocks(server: Server, client: openai.OpenAI) -> None:
    wait_for_metrics(server, num_kv_blocks_owned=0)
    before = metrics(server)
    stream = client.completions.create(model=server.model, prompt="a", max_tokens=1500, stream=True, **GREEDY)
    next(iter(stream))
    assert metrics(server)["vllm:num_kv_blocks_owned"] > 0
    stream.close()
    wait_for_metrics(server, num_requests_running=0, num_kv_blocks_owned=0)
    key = 'vllm:request_success_totalfinished_reason="abort"'
    assert metrics(server)[key] == before[key] + 1


def test_a_disconnect_with_a_large_body_frees_the_blocks(server: Server) -> None:
    """Of a client that waits for a whole answer and hangs up: nothing is written to it that could fail."""
    body = {"model": server.model, "prompt": "a", "max_tokens": 1500, "ignore_eos": True, "user": "x" * 100_000}
    url = httpx.URL(server.url)
    before = metrics(server)
    connection = http.client.HTTPConnection(url.host, url.port or 80)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    wait_for_metrics(server, num_requests_running=1)
    connection.close()
    wait_for_metrics(server, num_requests_running=0, num_kv_blocks_owned=0)
    key = 'vllm:request_success_totalfinished_reason="abort"'
    assert metrics(server)[key] == before[key] + 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": "ten"}, "max_tokens"),
        ({"messages": "hello"}, "messages"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["x"] * 1000}, "stop"),
    ],
    ids=str,
)
def test_bad_fields_are_named(server: Server, changes: dict[str, Any], param: str) -> None:
    body = {"model": server.model, "messages": MESSAGES, "max_tokens": 5, **changes}
    for stream in (False, True):
        response = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": stream})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert param in (error["param"] or "")


def test_bad_requests(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-0", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=server.model, prompt=[5] * 5000, max_tokens=1)
    assert too_long.value.code == "context_length_exceeded"
    assert "5000" in too_long.value.message
    assert "2048" in too_long.value.message
    with pytest.raises(openai.BadRequestError) as too_much:
        client.completions.create(model=server.model, prompt=[5] * 1000, max_tokens=1049)
    assert (too_much.value.code, too_much.value.param) == ("context_length_exceeded", "max_tokens")
    assert all(figure in too_much.value.message for figure in ("1000", "1049", "2048"))
    url = f"{server.url}/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    assert httpx.post(url, content=b'{"model":', headers=headers).status_code == 400
    assert httpx.post(url, content=b'{"x":"' + b"x" * 17 * 2**20 + b'"}', headers=headers).status_code == 413
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 404


@pytest.mark.slow
def test_bad_requests_disturb_no_neighbour(server: Server, client: openai.OpenAI) -> None:
    arguments: Any = {"model": server.model, "prompt": "The module", "max_tokens": 60, **GREEDY}
    alone = client.completions.create(**arguments).choices[0].text
    stream = iter(client.completions.create(**arguments, stream=True))
    text = next(stream).choices[0].text
    url = httpx.URL(server.url)
    for number in range(20):
        httpx.post(f"{server.url}/v1/completions", json={"model": server.model, "prompt": [-number - 1]})
        with socket.create_connection((url.host, url.port)) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
    assert text + "".join(chunk.choices[0].text for chunk in stream) == alone


def test_only_the_worker_loads_torch(server: Server) -> None:
    def loads_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    assert [loads_torch(pid) for pid in server.processes("gpu_workers")] == [True]
    others = [server.process.pid, *server.processes("engine_core"), *server.processes("frontend")]
    # The frontend's forking child, too, and a preparation process for each of the long requests that came together.
    assert len(others) >= 5
    assert not any(map(loads_torch, others))
