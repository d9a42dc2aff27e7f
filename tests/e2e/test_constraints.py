"""Bad words, allowed tokens and a thinking budget, from a request to the tokens of the demo model."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from frontend.bad_words import bad_word_sequences
from frontend.tokenizer import TextTokenizer
from quire import LLM, SamplingParams
from tests.e2e.server import DEMO_MODEL, Server

PROMPT = "The list"


def complete(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"model": server.model, "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "return_token_ids": True}
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_bad_words(server: Server) -> None:
    """Words of the plain answer, of one token and of several, are gone; with and without a space before them."""
    words = complete(server)["text"].split()[:4]
    assert len(words) == 4
    without = complete(server, bad_words=[words[0], f"{words[1]} {words[2]}"])
    assert words[0] not in without["text"].split()
    assert f"{words[1]} {words[2]}" not in without["text"]
    responses = httpx.post(
        f"{server.url}/v1/responses",
        json={"model": server.model, "input": "Hi", "bad_words": words, "max_output_tokens": 4},
    )
    assert responses.status_code == 200, responses.text


def test_bad_words_as_tokens() -> None:
    tokenizer = TextTokenizer.from_folder(str(DEMO_MODEL))
    (plain, spaced) = bad_word_sequences(["list"], tokenizer)
    assert tokenizer.decode(plain, skip_special_tokens=False) == "list"
    assert tokenizer.decode(spaced, skip_special_tokens=False) == " list"
    with pytest.raises(ValueError, match="at most 16 tokens"):
        bad_word_sequences(["a b c d e f g h i j k l m n o p q r s"], tokenizer)


def test_allowed_tokens(server: Server) -> None:
    allowed = sorted({*complete(server)["token_ids"][2:5], 77})
    for temperature in (0, 1.5):
        choice = complete(server, allowed_token_ids=allowed, temperature=temperature, seed=3)
        assert set(choice["token_ids"]) <= set(allowed)
        assert len(choice["token_ids"]) == 24 or choice["finish_reason"] == "stop"


@pytest.mark.slow
def test_in_a_program() -> None:
    with LLM(str(DEMO_MODEL), num_gpu_blocks_override=400) as llm:
        plain = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0].outputs[0]
        word = plain.text.split()[0]
        params = [
            SamplingParams(temperature=0, max_tokens=8, bad_words=[word]),
            SamplingParams(temperature=0, max_tokens=8, allowed_token_ids=plain.token_ids[1:3], ignore_eos=True),
            SamplingParams(temperature=0, max_tokens=8, thinking_token_budget=3, thinking_end_token_ids=[9, 8]),
        ]
        outputs = [output.outputs[0] for output in llm.generate([PROMPT] * 3, params, use_tqdm=False)]
        assert word not in outputs[0].text.split()
        assert set(outputs[1].token_ids) <= set(plain.token_ids[1:3])
        assert outputs[2].token_ids[:5] == [*plain.token_ids[:3], 9, 8]
        with pytest.raises(ValueError, match="bad_words"):
            llm.generate(PROMPT, SamplingParams(bad_words=[" "]), use_tqdm=False)


@pytest.mark.slow
def test_a_thinking_budget(start: Callable[..., Server]) -> None:
    """The reasoning has as many tokens as it may have, then its end, and the answer follows."""
    server = start("--reasoning-parser", "deepseek_r1").wait_until_ready()
    chat = {
        "model": server.model,
        "messages": [{"role": "user", "content": "What does os.path.join do?"}],
        "temperature": 0,
        "max_tokens": 40,
        "return_token_ids": True,
    }
    tokenizer = TextTokenizer.from_folder(str(DEMO_MODEL))
    end = tokenizer.encode("</think>", add_special_tokens=False)
    url = f"{server.url}/v1/chat/completions"
    unbounded = httpx.post(url, json=chat).json()["choices"][0]
    assert unbounded["message"]["content"] is None
    for budget in (0, 5):
        answer = httpx.post(url, json={**chat, "thinking_token_budget": budget}).json()
        choice = answer["choices"][0]
        assert choice["token_ids"][: budget + len(end)] == [*unbounded["token_ids"][:budget], *end]
        assert (
            choice["message"].get("reasoning", "")
            == tokenizer.decode(unbounded["token_ids"][:budget], skip_special_tokens=True).strip()
        )
        assert choice["message"]["content"]
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == budget + len(end)
    response = httpx.post(
        f"{server.url}/v1/responses",
        json={"model": server.model, "input": "Hi", "max_output_tokens": 30, "reasoning": {"max_tokens": 3}},
    )
    assert response.status_code == 200, response.text
    refused = httpx.post(url, json={**chat, "thinking_token_budget": -1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking_token_budget")
