"""Beam search over ZeroMQ against transformers in fp32; over HTTP and in `LLM` with the demo model."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from frontend.beams.generation import search_many
from frontend.beams.search import BeamParams, FinishedBeam
from quire import LLM, BeamSearchParams
from tests.e2e.engines import engine, mixed_prompts
from tests.e2e.server import DEMO_MODEL, Server
from tests.e2e.test_greedy_parity import MODELS, save_small_model

NUM_TOKENS = 14
WAYS: list[dict[str, Any]] = [
    {"width": 2},
    {"width": 4, "length_penalty": 2.0},
    {"width": 4, "length_penalty": 0.0, "early_stopping": "never"},
    {"width": 3, "length_penalty": -1.0, "early_stopping": True},
    {"width": 5, "early_stopping": True},
    {"width": 5, "length_penalty": 1.5, "early_stopping": "never"},
]
EOS = {"one": (2,), "three": (2, 77, 300)}


async def search_all(folder: Path, run_dir: Path, prompts: list[list[int]], ways: list[BeamParams]) -> list[Any]:
    arguments = {"num_gpu_blocks_override": 400, "max_model_len": 160, "block_size": 8, "dtype": "float32"}
    async with engine(folder, run_dir, **arguments) as client:
        found = [await search_many(client, prompts, way, window=2) for way in ways]
        metrics = await client.utility("metrics")
        status = await client.utility("status")
    assert status["free_blocks"] == status["total_blocks"]
    figures = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line[0] != "#"}
    assert figures["vllm:prefix_cache_hits_total"] > 0
    return found


def reference(model: Any, prompt: list[int], way: BeamParams) -> tuple[list[list[int]], list[float]]:
    """transformers' answers without what pads them, and their scores."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=way.width,
        num_return_sequences=way.width,
        max_new_tokens=way.max_tokens,
        eos_token_id=list(way.eos_token_ids),
        pad_token_id=0,
        length_penalty=way.length_penalty,
        early_stopping=way.early_stopping,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = []
    for sequence in result.sequences[:, len(prompt) :].tolist():
        ends = [index for index, token in enumerate(sequence) if token in way.eos_token_ids]
        answers.append(sequence[: ends[0] + 1] if ends else sequence)
    return answers, result.sequences_scores.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("eos", EOS)
@torch.no_grad()
def test_against_transformers(eos: str, tmp_path: Path) -> None:
    """The same answers with the same scores, in the same order; some end by a token, some at the limit."""
    save_small_model(tmp_path / "model", MODELS["gqa"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompts = mixed_prompts(6, model.config.vocab_size, 40)
    first = model(torch.tensor([prompts[0]])).logits[0, -1].topk(3).indices.tolist()
    ends = (*EOS[eos], first[-1])  # one that comes, in a model that knows nothing of ends
    fitting = [way for way in WAYS if way["width"] * (1 + len(ends)) <= 20]
    ways = [BeamParams(max_tokens=NUM_TOKENS, eos_token_ids=ends, **way) for way in fitting]
    found: list[list[list[FinishedBeam]]] = asyncio.run(search_all(tmp_path / "model", tmp_path, prompts, ways))
    reasons: set[str] = set()
    for way, of_way in zip(ways, found, strict=True):
        for prompt, beams in zip(prompts, of_way, strict=True):
            answers, scores = reference(model, prompt, way)
            assert [list(one.beam.token_ids) for one in beams] == answers
            assert [one.score for one in beams] == pytest.approx(scores, rel=1e-5, abs=1e-4)
            reasons |= {one.reason for one in beams}
    assert reasons == {"stop", "length"}


def test_too_many_beams() -> None:
    with pytest.raises(ValueError, match="at most 6, not 7"):
        BeamParams(7, 10, eos_token_ids=(1, 2))


def test_over_http(server: Server) -> None:
    body = {"model": server.model, "prompt": ["A list", "The function"], "max_tokens": 8, "use_beam_search": True}
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "n": 2, "best_of": 4, "logprobs": 1}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for best, second in ((0, 1), (2, 3)):
        means = [
            sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["token_logprobs"])
            for choice in (answer["choices"][best], answer["choices"][second])
        ]
        assert means[0] >= means[1] - 1e-6
        assert answer["choices"][best]["text"] != answer["choices"][second]["text"]
    assert all(choice["finish_reason"] in ("stop", "length") for choice in answer["choices"])
    greedy = httpx.post(
        f"{server.url}/v1/completions", json={**body, "temperature": 0, "use_beam_search": False}
    ).json()
    alone = httpx.post(f"{server.url}/v1/completions", json=body).json()
    assert [choice["text"] for choice in alone["choices"]] == [choice["text"] for choice in greedy["choices"]]
    assert alone["usage"]["completion_tokens"] == greedy["usage"]["completion_tokens"]
    chat = {"model": server.model, "messages": [{"role": "user", "content": "What does os.path.join do?"}]}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={**chat, "max_tokens": 8, "n": 3, "use_beam_search": True}
    ).json()
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3


@pytest.mark.slow
def test_in_a_program() -> None:
    with LLM(str(DEMO_MODEL), num_gpu_blocks_override=400) as llm:
        outputs = llm.beam_search(["A list", "The function"], BeamSearchParams(beam_width=3, max_tokens=6))
        for output in outputs:
            scores = [sequence.score for sequence in output.sequences]
            assert scores == sorted(scores, reverse=True)
            assert all(sequence.text for sequence in output.sequences)
            assert all(1 <= len(sequence.token_ids) <= 6 for sequence in output.sequences)
        with pytest.raises(ValueError, match="number of beams"):
            llm.beam_search("x", BeamSearchParams(beam_width=0, max_tokens=6))
