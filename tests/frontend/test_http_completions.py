"""Text completions, log-probabilities and token ids: what evaluation harnesses look at."""

from array import array

from engine_core.ipc.messages import AddRequest
from tests.frontend.support import END, MAX_MODEL_LEN, deltas_of, events_of


def test_chat_logprobs(setup):
    setup.say("Grüße 🦊")
    body = setup.chat(logprobs=True, top_logprobs=2).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "Grüße 🦊"
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
        assert entry["top_logprobs"][1]["logprob"] == -9999.0, "minus infinity is clamped"
    assert setup.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    events = events_of(setup.chat(logprobs=True, stream=True))
    streamed = [entry for delta in deltas_of(events) if delta["logprobs"] for entry in delta["logprobs"]["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in streamed).decode() == "Grüße 🦊"


def test_the_end_token_has_a_logprob_in_completions_only(setup):
    end = setup.tokenizer.token_to_id(END)
    ids = [*setup.tokenizer.encode("ab").ids, end]
    setup.say_ids(ids, stop_token_id=end)
    choice = setup.complete(logprobs=1, max_tokens=20).json()["choices"][0]
    assert choice["text"] == "ab"
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert choice["logprobs"]["tokens"][-1] == END
    assert len(setup.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]) == len(ids) - 1


def test_completion_logprobs(setup):
    setup.say("one 🦊 two")
    choice = setup.complete(logprobs=0, max_tokens=100).json()["choices"][0]
    logprobs = choice["logprobs"]
    count = len(setup.tokenizer.encode("one 🦊 two").ids)
    assert {len(logprobs[name]) for name in logprobs} == {count}
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert all(len(top) == 1 for top in logprobs["top_logprobs"])
    streamed = events_of(setup.complete(logprobs=0, max_tokens=100, stream=True))
    tokens = [token for delta in deltas_of(streamed) if delta["logprobs"] for token in delta["logprobs"]["tokens"]]
    assert tokens == logprobs["tokens"]


def test_completion_prompt_forms(setup):
    setup.say("x")
    ids = setup.tokenizer.encode("Hello").ids
    for prompt, count in (("Hello", 1), (["Hello", "Hello"], 2), (ids, 1), ([ids, ids, ids], 3)):
        setup.forget()
        body = setup.complete(prompt, n=2).json()
        assert [choice["index"] for choice in body["choices"]] == list(range(2 * count))
        adds = setup.core.received(AddRequest)
        assert [(array("i", add.prompt_token_ids).tolist(), add.num_samples) for add in adds] == [(ids, 2)] * count
        assert body["usage"]["prompt_tokens"] == count * len(ids)
    assert setup.core.received(AddRequest)[-1].sampling.max_tokens == 16
    assert setup.complete([5] * (MAX_MODEL_LEN - 3)).status_code == 200
    assert setup.core.received(AddRequest)[-1].sampling.max_tokens == 3


def test_echo(setup):
    setup.say(" world")
    assert setup.complete("Hello", echo=True).json()["choices"][0]["text"] == "Hello world"
    ids = setup.tokenizer.encode("Hello").ids
    events = events_of(setup.complete(ids, echo=True, stream=True))
    assert "".join(delta["text"] for delta in deltas_of(events)) == "Hello world"
    setup.forget()
    body = setup.complete(["Hello", "you"], echo=True, max_tokens=0).json()
    assert [choice["text"] for choice in body["choices"]] == ["Hello", "you"]
    assert body["usage"]["completion_tokens"] == 0
    assert setup.core.received(AddRequest) == []


def test_a_stream_of_completions(setup):
    setup.say("one two three")
    events = events_of(setup.complete(stream=True, max_tokens=100, stream_options={"include_usage": True}))
    deltas = deltas_of(events)
    assert "".join(delta["text"] for delta in deltas) == "one two three"
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert deltas[-1]["text"] == ""
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] > 0
    assert all(event["object"] == "text_completion" for event in events[:-1])


def test_return_token_ids(setup):
    setup.say("one two")
    ids = setup.tokenizer.encode("one two").ids
    body = setup.chat(return_token_ids=True).json()
    assert body["choices"][0]["token_ids"] == ids
    assert body["prompt_token_ids"] == array("i", setup.core.received(AddRequest)[-1].prompt_token_ids).tolist()
    events = events_of(setup.chat(return_token_ids=True, stream=True))
    assert [token for delta in deltas_of(events) for token in delta.get("token_ids", [])] == ids
    assert [("prompt_token_ids" in event) for event in events[:-1]] == [True] + [False] * (len(events) - 2)


def test_tokenize_and_detokenize(setup):
    ids = setup.tokenizer.encode("Grüße").ids
    body = setup.post("/tokenize", {"prompt": "Grüße", "return_token_strs": True}).json()
    assert (body["tokens"], body["count"], body["max_model_len"]) == (ids, len(ids), MAX_MODEL_LEN)
    assert len(body["token_strs"]) == len(ids)
    assert setup.post("/detokenize", {"tokens": ids}).json() == {"prompt": "Grüße"}
    chat = setup.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()
    text = setup.post("/detokenize", {"tokens": chat["tokens"]}).json()["prompt"]
    assert text == f"<|user|>Hi{END}<|assistant|>"
