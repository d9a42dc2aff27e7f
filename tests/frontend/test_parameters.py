"""Parameters that the frontend honours by itself: truncation, the best of several, templates of requests."""

from array import array

import pytest

from engine_core.ipc.messages import AddRequest
from frontend.best_of import best_outputs
from frontend.output_processor import OutputPiece, TokenLogprobs
from tests.frontend.support import END, MAX_MODEL_LEN, Setup, running_setup
from tests.frontend.test_http_answers import prompt_text
from tests.frontend.test_http_errors import error_of


def prompt_ids(setup: Setup) -> list[int]:
    return array("i", setup.core.received(AddRequest)[-1].prompt_token_ids).tolist()


def piece(*logprobs: float) -> OutputPiece:
    return OutputPiece(logprobs=[TokenLogprobs(1, logprob, [], 0, 1) for logprob in logprobs])


def test_the_best_are_those_with_the_highest_mean():
    long, short, empty, bad = piece(-1.0, -1.0, -1.0), piece(-1.5), piece(), piece(-9999.0)
    assert best_outputs([short, long, bad], 3, 2) == [long, short]
    assert best_outputs([bad, short, long, empty], 2, 1) == [short, empty]
    equal = [piece(-1.0), piece(-1.0)]
    assert best_outputs(equal, 2, 1)[0] is equal[0]


def test_best_of_makes_more_than_it_answers(setup):
    setup.say("one two")
    body = setup.complete(["a", "b"], best_of=3, n=2, max_tokens=50, seed=1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert all(choice["text"] == "one two" and choice["logprobs"] is None for choice in body["choices"])
    adds = setup.core.received(AddRequest)
    assert [(add.num_samples, add.sampling.sample_index, add.sampling.logprobs) for add in adds] == [(3, 0, 0)] * 2
    num_tokens = len(setup.tokenizer.encode("one two").ids)
    assert body["usage"]["completion_tokens"] == 6 * num_tokens
    body = setup.complete("a", best_of=2, logprobs=3).json()
    assert setup.core.received(AddRequest)[-1].sampling.logprobs == 3
    assert body["choices"][0]["logprobs"]["tokens"]


def test_best_of_that_equals_n_may_stream(setup):
    setup.say("one two")
    assert setup.complete("a", best_of=2, n=2, stream=True).text.endswith("data: [DONE]\n\n")
    assert setup.core.received(AddRequest)[-1].sampling.logprobs is None


def test_truncation_keeps_the_end(setup):
    setup.say("ok")
    text = "The quick brown fox jumps over the lazy dog."
    ids = setup.tokenizer.encode(text).ids
    setup.complete(text, truncate_prompt_tokens=3)
    assert prompt_ids(setup) == ids[-3:]
    setup.complete([ids, ids[:2]], truncate_prompt_tokens=4)
    assert [len(add.prompt_token_ids) // 4 for add in setup.core.received(AddRequest)[-2:]] == [4, 2]
    body = setup.complete(text, truncate_prompt_tokens=3, echo=True).json()
    assert body["choices"][0]["text"] == setup.tokenizer.decode(ids[-3:]) + "ok"
    assert body["usage"]["prompt_tokens"] == 3
    setup.chat(text * 100, truncate_prompt_tokens=-1, max_completion_tokens=100)
    assert len(prompt_ids(setup)) == MAX_MODEL_LEN - 100
    assert prompt_text(setup).endswith(f"lazy dog.{END}<|assistant|>")
    too_much = setup.complete(text, truncate_prompt_tokens=-1, max_tokens=MAX_MODEL_LEN)
    assert error_of(too_much, 400)["code"] == "context_length_exceeded"


def test_values_that_ask_for_nothing_are_no_error(setup):
    setup.say("ok")
    nothing = {"use_beam_search": False, "bad_words": [], "functions": None, "modalities": ["text"]}
    answer = setup.chat(**nothing)
    assert answer.status_code == 200
    assert "warning" not in answer.headers


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory):
    with running_setup(tmp_path_factory.mktemp("run"), trust_request_chat_template=True) as setup:
        setup.say("ok")
        yield setup


def test_a_requests_own_template(trusting):
    template = "{% for m in messages %}{{ m.content }}!{{ eos_token }}{% endfor %}{{ mood }}"
    assert trusting.chat("Hi", chat_template=template, chat_template_kwargs={"mood": "x"}).status_code == 200
    assert prompt_text(trusting) == f"Hi!{END}x"
    messages = [{"role": "user", "content": "Hi"}]
    body = trusting.post("/tokenize", {"messages": messages, "chat_template": template}).json()
    assert body["tokens"] == trusting.tokenizer.encode(f"Hi!{END}").ids
    assert trusting.chat("Hi").status_code == 200
    assert prompt_text(trusting) == f"<|user|>Hi{END}<|assistant|>"


@pytest.mark.parametrize(
    "template", ["{% if %}", "x" * 70_000, "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__subclasses__() }}"]
)
def test_a_bad_template_of_a_request(trusting, template):
    trusting.forget()
    error = error_of(trusting.chat("Hi", chat_template=template), 400)
    assert error["param"] in ("chat_template", "messages")
    assert trusting.core.received(AddRequest) == []
