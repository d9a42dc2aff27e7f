"""Log-probabilities of prompts: over ZeroMQ against transformers in fp32, in chunks and preempted; over HTTP."""

import asyncio
import math
from pathlib import Path

import httpx
import openai
import pytest
import torch
import transformers

from frontend.client import EngineClient, LogprobColumns
from tests.e2e.engines import engine, generate, mixed_prompts
from tests.e2e.server import DEMO_MODEL, Server
from tests.e2e.test_greedy_parity import DEVICES, MODELS, save_small_model

TEXT = "Return the sum of a list, não 你好."


async def score(client: EngineClient, prompt: list[int], num_top: int, max_tokens: int) -> LogprobColumns | None:
    """What the engine says of a prompt; none may come after the first token."""
    found: LogprobColumns | None = None
    async for delta in client.generate(
        prompt, {"temperature": 0.0, "max_tokens": max_tokens, "prompt_logprobs": num_top, "ignore_eos": True}
    ):
        assert found is None or delta.prompt_logprobs is None
        found = delta.prompt_logprobs or found
    return found


async def score_all(folder: Path, run_dir: Path, prompts: list[list[int]], device: str) -> list[LogprobColumns | None]:
    """So few blocks that requests are preempted, in the middle of prompts too, and chunks of 24 tokens."""
    arguments = {
        "num_gpu_blocks_override": 30,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 16,
        "max_model_len": 160,
        "block_size": 8,
        "dtype": "float32",
        "device": device,
        "max_num_partial_prefills": 4,
    }
    async with engine(folder, run_dir, **arguments) as client:
        results = await asyncio.gather(*(score(client, prompt, 2, 20) for prompt in prompts))
        metrics = await client.utility("metrics")
        status = await client.utility("status")
        figures = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}
        assert figures["vllm:num_preemptions_total"] > 0
        assert status["free_blocks"] == status["total_blocks"]
        # They read no cache but fill it.
        longest = max(prompts, key=len)
        await score(client, longest, 0, 1)
        before = figures["vllm:prefix_cache_hits_total"]
        await generate(client, longest, temperature=0.0, max_tokens=1)
        metrics = await client.utility("metrics")
        figures = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}
        assert figures["vllm:prefix_cache_hits_total"] - before >= (len(longest) - 1) // 8 * 8
    return results


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_against_transformers(device: str, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model", MODELS["gqa"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompts = mixed_prompts(24, model.config.vocab_size, 100)
    results = asyncio.run(score_all(tmp_path / "model", tmp_path, prompts, device))
    for prompt, columns in zip(prompts, results, strict=True):
        if len(prompt) == 1:
            assert columns is None
            continue
        assert columns is not None
        wanted = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        chosen = wanted.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(columns.logprobs.tolist()), chosen, rtol=0, atol=1e-4)
        tops = torch.tensor(columns.top_logprobs.tolist()).view(-1, 2)
        torch.testing.assert_close(tops, wanted.topk(2).values, rtol=0, atol=1e-4)
        at_ids = wanted.gather(1, torch.tensor(columns.top_token_ids.tolist()).view(-1, 2))
        torch.testing.assert_close(at_ids, tops, rtol=0, atol=1e-4)
        assert all(
            logprob == top
            for logprob, rank, top in zip(columns.logprobs, columns.ranks, columns.top_logprobs[::2], strict=True)
            if rank == 1
        )


def check_entries(choice: openai.types.CompletionChoice, num_prompt_tokens: int, num_output_tokens: int) -> None:
    """One entry per token, null first, offsets that cut the text into the tokens' texts."""
    logprobs, text = choice.logprobs, choice.text
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    count = num_prompt_tokens + num_output_tokens
    columns = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert [len(column) for column in columns] == [count] * 4
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    for token, logprob, tops in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[
        1:
    ]:
        assert -9999.0 <= logprob <= 0
        assert tops[token] == logprob <= max(tops.values())
    # What was sampled greedily is the most likely.
    for logprob, tops in list(zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[num_prompt_tokens:]:
        assert logprob == max(tops.values())
    ends = [*logprobs.text_offset[1:], len(text)]
    assert logprobs.text_offset[0] == 0
    for token, start, end in zip(logprobs.tokens, logprobs.text_offset, ends, strict=True):
        if not token.startswith("bytes:") and start < end:
            assert text[start:end] == token


def test_echo_with_logprobs(client: openai.OpenAI, server: Server) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    options = {"model": server.model, "temperature": 0, "echo": True, "logprobs": 2}
    whole = client.completions.create(prompt=TEXT, max_tokens=6, **options)
    check_entries(whole.choices[0], len(ids), whole.usage.completion_tokens)
    assert whole.choices[0].text.startswith(TEXT)
    for prompt in (TEXT, ids):
        only = client.completions.create(prompt=prompt, max_tokens=0, **options)
        assert only.choices[0].text.removeprefix("<|bos|>") == TEXT  # of ids, which say so, it is part
        assert only.choices[0].finish_reason == "length"
        check_entries(only.choices[0], len(ids), 0)
        assert (only.usage.prompt_tokens, only.usage.completion_tokens) == (len(ids), 0)
        count = len(ids)
        assert only.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
            whole.choices[0].logprobs.token_logprobs[1:count], abs=1e-4
        )
    # As lm-eval asks, and as a stream.
    several = client.completions.create(prompt=[ids, ids[:4], ids[:1]], max_tokens=1, **{**options, "logprobs": 1})
    for choice, length in zip(several.choices, (len(ids), 4, 1), strict=True):
        check_entries(choice, length, 1)
    pieces = list(client.completions.create(prompt=TEXT, max_tokens=6, stream=True, **options))
    streamed = whole.choices[0].model_copy(deep=True)
    assert "".join(piece.choices[0].text for piece in pieces) == streamed.text
    for name in ("tokens", "text_offset"):
        parts = [getattr(piece.choices[0].logprobs, name) for piece in pieces if piece.choices[0].logprobs]
        assert [entry for part in parts for entry in part] == getattr(streamed.logprobs, name)


def test_prompt_logprobs_in_vllms_form(server: Server) -> None:
    body = {"model": server.model, "prompt": TEXT, "max_tokens": 1, "temperature": 0}
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": TEXT}).json()["tokens"]
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt_logprobs": 2, "max_tokens": 0}).json()
    entries = answer["choices"][0]["prompt_logprobs"]
    assert (answer["choices"][0]["text"], len(entries), entries[0]) == ("", len(ids), None)
    for token_id, entry in zip(ids[1:], entries[1:], strict=True):
        assert entry[str(token_id)].keys() == {"logprob", "rank", "decoded_token"}
        assert len(entry) in (2, 3)
        assert sorted(value["rank"] for value in entry.values())[:2] == [1, 2]
        assert all(math.isfinite(value["logprob"]) for value in entry.values())
    chat = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={**chat, "prompt_logprobs": 0, "return_token_ids": True}
    ).json()
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"])
    assert [list(entry) for entry in answer["prompt_logprobs"][1:]] == [
        [str(i)] for i in answer["prompt_token_ids"][1:]
    ]
    for wrong in ({"prompt_logprobs": 21}, {"prompt_logprobs": -1}, {"prompt_logprobs": 1, "stream": True}):
        refused = httpx.post(f"{server.url}/v1/completions", json={**body, **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")
    assert DEMO_MODEL.name in server.model
