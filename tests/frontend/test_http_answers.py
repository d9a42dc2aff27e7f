"""What a client gets that asks for something sensible: shapes, text, streams, log-probabilities."""

import json
from array import array

import httpx
import openai
import pytest

from engine_core.ipc.messages import PROTOCOL_VERSION, AddRequest
from tests.frontend.support import END, MAX_MODEL_LEN, MODEL, Setup, deltas_of, events_of

TEXT = "Grüße, 你好 🦊! The quick brown fox."


def prompt_text(setup: Setup) -> str:
    """The prompt of the last request, as the core got it."""
    ids = array("i", setup.core.received(AddRequest)[-1].prompt_token_ids).tolist()
    return setup.tokenizer.decode(ids, skip_special_tokens=False)


def test_chat(setup):
    setup.say(TEXT)
    body = setup.chat("Hi", max_tokens=200).json()
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    num_tokens = len(setup.tokenizer.encode(TEXT).ids)
    usage = body["usage"]
    assert usage["completion_tokens"] == num_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + num_tokens
    assert prompt_text(setup) == f"<|user|>Hi{END}<|assistant|>"


def test_streamed_and_whole_text_are_the_same(setup):
    setup.say(TEXT)
    events = events_of(setup.chat(stream=True, max_tokens=200))
    deltas = deltas_of(events)
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == TEXT
    assert not any("�" in delta["delta"].get("content", "") for delta in deltas)
    assert events[-1] == "[DONE]"


def test_the_shape_of_a_stream(setup):
    setup.say("one two three")
    response = setup.chat(stream=True, max_tokens=100)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    chunks = events[:-1]
    for field in ("id", "created", "model", "object"):
        assert len({chunk[field] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    deltas = deltas_of(events)
    assert deltas[0]["delta"]["role"] == "assistant"
    assert deltas[0]["delta"]["content"], "the role comes with the first token"
    assert all("role" not in delta["delta"] for delta in deltas[1:])
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert deltas[-1]["delta"] == {}
    assert all("usage" not in chunk for chunk in chunks)
    other = events_of(setup.chat(stream=True, max_tokens=100))
    assert other[0]["id"] != chunks[0]["id"]


def test_one_write_per_event(setup):
    """A reader of the raw connection finds each event in a chunk of its own."""
    setup.say("one two three")
    with setup.http.stream(
        "POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
    ) as response:
        raw = b"".join(response.iter_raw())
    assert raw.count(b"data: ") == raw.count(b"\n\n")
    for event in raw.split(b"\n\n")[:-1]:
        assert event.startswith(b"data: ")
        assert b"\n" not in event


def test_usage_only_where_it_was_asked_for(setup):
    setup.say("one two three")
    num_tokens = len(setup.tokenizer.encode("one two three").ids)
    events = events_of(setup.chat(stream=True, max_tokens=100, stream_options={"include_usage": True}))
    *chunks, last, done = events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == num_tokens
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(setup.chat(stream=True, max_tokens=100, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == num_tokens


def test_n_choices_are_complete_and_sampled_apart(setup):
    setup.say("one two")
    events = events_of(setup.chat(stream=True, n=3, seed=4, max_tokens=100))
    for index in range(3):
        deltas = deltas_of(events, index)
        assert "".join(delta["delta"].get("content", "") for delta in deltas) == "one two"
        assert deltas[-1]["finish_reason"] == "stop"
        assert deltas[0]["delta"]["role"] == "assistant"
    (add,) = setup.core.received(AddRequest)
    assert (add.num_samples, add.sampling.sample_index, add.sampling.seed) == (3, 0, 4)
    body = setup.chat(n=2, max_tokens=100).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["one two"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_leaks_nothing(setup, stream):
    setup.say("The quick brown fox jumps")
    response = setup.chat(stop=["ick bro", "zzz"], stream=stream, max_tokens=100)
    if stream:
        deltas = deltas_of(events_of(response))
        text = "".join(delta["delta"].get("content", "") for delta in deltas)
        last = deltas[-1]
    else:
        last = response.json()["choices"][0]
        text = last["message"]["content"]
    assert text == "The qu"
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "ick bro")


def test_usage_counts_up_to_the_stopping_token(setup):
    setup.say("abcdefgh", endless=True)
    setup.core.pause()
    setup.core.allow_steps(1000)
    body = setup.chat(stop="d").json()
    ids = setup.tokenizer.encode("abcdefgh").ids
    needed = next(count for count in range(1, len(ids) + 1) if "d" in setup.tokenizer.decode(ids[:count]))
    assert body["usage"]["completion_tokens"] == needed
    assert body["choices"][0]["message"]["content"] == "abc"


def test_held_back_text_comes_at_a_natural_end(setup):
    setup.say("to be sto")
    body = setup.chat(stop="stop", max_tokens=100).json()
    assert body["choices"][0]["message"]["content"] == "to be sto"
    text = "".join(
        delta["delta"].get("content", "") for delta in deltas_of(events_of(setup.chat(stop="stop", stream=True)))
    )
    assert text == "to be sto"


def test_stop_string_options(setup):
    setup.say("abcdabcd")
    body = setup.chat(stop="c", include_stop_str_in_output=True).json()
    assert body["choices"][0]["message"]["content"] == "abc"
    num_tokens = len(setup.tokenizer.encode("abcdabc").ids)
    body = setup.chat(stop="c", min_tokens=num_tokens).json()
    assert body["choices"][0]["message"]["content"] == "abcdab"
    assert setup.core.received(AddRequest)[-1].sampling.min_tokens == num_tokens


def test_sampling_reaches_the_engine(setup):
    setup.say("x")
    setup.chat(
        temperature=0.3, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=0.5, frequency_penalty=-0.5,
        repetition_penalty=1.2, logit_bias={"5": -3}, seed=-9, stop_token_ids=[3], ignore_eos=True, min_tokens=1,
        max_tokens=7, logprobs=True, top_logprobs=4, priority=3, cache_salt="s",
    )  # fmt: skip
    add = setup.core.received(AddRequest)[-1]
    sampling = add.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.9, 0, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.2)
    assert (sampling.logit_bias, sampling.seed, sampling.stop_token_ids) == ({5: -3.0}, -9, [3])
    assert (sampling.ignore_eos, sampling.min_tokens, sampling.max_tokens, sampling.logprobs) == (True, 1, 7, 4)
    assert (add.priority, add.cache_salt) == (3, "s")


def test_a_trace_context_reaches_the_engine(setup):
    setup.say("x")
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    setup.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2}, headers=headers)
    setup.post("/v1/completions", {"prompt": "Hi"}, headers=headers)
    assert [add.trace_context for add in setup.core.received(AddRequest)[-2:]] == [headers["traceparent"]] * 2
    setup.complete()
    setup.post("/v1/completions", {"prompt": "Hi"}, headers={"traceparent": "0" * 513})
    assert [add.trace_context for add in setup.core.received(AddRequest)[-2:]] == [None, None]


def test_max_tokens_and_its_newer_name(setup):
    setup.say("a b c d e f g h")
    body = setup.chat(max_tokens=9, max_completion_tokens=3).json()
    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["finish_reason"] == "length"
    setup.chat()
    num_prompt_tokens = len(setup.core.received(AddRequest)[-1].prompt_token_ids) // 4
    assert setup.core.received(AddRequest)[-1].sampling.max_tokens == MAX_MODEL_LEN - num_prompt_tokens


def test_conversations_of_every_kind(setup):
    setup.say("ok")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "<é>"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    response = setup.post("/v1/chat/completions", {"messages": messages, "chat_template_kwargs": {"mood": "glad"}})
    assert response.status_code == 200
    assert prompt_text(setup) == (
        f"<|system|>Be brief.{END}<|user|>Hel lo{END}"
        f'<|assistant|>[f({{"x": "<é>"}})]{END}<|tool|>4{END}(glad)<|assistant|>'
    )


def test_tools_are_rendered_unless_none(setup):
    setup.say("ok")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    assert setup.chat(tools=tools).status_code == 200
    assert '"name": "look"' in prompt_text(setup)
    assert setup.chat(tools=tools, tool_choice="none").status_code == 200
    assert "look" not in prompt_text(setup)


def test_continuing_the_final_message(setup):
    setup.say("ok")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am "}]
    body = {"messages": messages, "continue_final_message": True}
    assert setup.post("/v1/chat/completions", body).status_code == 200
    assert prompt_text(setup) == f"<|user|>Hi{END}<|assistant|>I am "
    body["add_generation_prompt"] = True
    refusal = setup.post("/v1/chat/completions", body)
    assert refusal.status_code == 400
    assert refusal.json()["error"]["param"] == "continue_final_message"


def test_a_long_prompt_is_encoded_beside_the_loop(setup):
    """Its length is over the context's, and both lengths are in the answer."""
    error = setup.chat("word " * 20_000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert str(MAX_MODEL_LEN) in error["message"]


def test_status_endpoints(setup):
    assert setup.http.get("/health").status_code == 200
    assert setup.http.get("/ready").json()["status"] == "ready"
    assert setup.http.get("/version").json()["protocol_version"] == PROTOCOL_VERSION
    metrics = setup.http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "quire_steps 3" in metrics.text
    names = [card["id"] for card in setup.http.get("/v1/models").json()["data"]]
    assert names == [MODEL, "alias"]
    assert setup.http.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    assert setup.http.get("/v1/models/tiny%2Fmodel").json()["id"] == MODEL
    assert setup.http.get("/v1/models/nope").json()["error"]["code"] == "model_not_found"


def test_head_and_options(setup):
    for path in ("/health", "/metrics", "/v1/models", "/version"):
        head = setup.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert "HEAD" in setup.http.options(path).headers["allow"]
    options = setup.http.options("/v1/chat/completions")
    assert options.status_code == 204
    assert "POST" in options.headers["allow"]


def test_the_openai_package(setup):
    setup.say(TEXT)
    with openai.OpenAI(base_url=f"{setup.url}/v1", api_key="none", http_client=httpx.Client()) as client:
        answer = client.chat.completions.create(model="alias", messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content == TEXT
        assert answer.model == "alias"
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == TEXT
        assert chunks[-1].usage is not None
        assert client.completions.create(model=MODEL, prompt="Hi", max_tokens=99).choices[0].text == TEXT
        assert [model.id for model in client.models.list()] == [MODEL, "alias"]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])


def test_default_sampling_holds_under_the_requests_own(tmp_path):
    from tests.frontend.support import running_setup

    defaults = {"temperature": 0.6, "top_k": 20, "max_tokens": 5}
    with running_setup(tmp_path, default_sampling=defaults) as own:
        own.say("a b c d e f g h i j k")
        body = own.chat(top_k=3).json()
        sampling = own.core.received(AddRequest)[-1].sampling
        assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.6, 3, 5)
        assert body["usage"]["completion_tokens"] == 5
        assert json.loads(own.chat(max_tokens=7).text)["usage"]["completion_tokens"] == 7
