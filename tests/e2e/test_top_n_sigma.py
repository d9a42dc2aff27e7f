"""Top-nσ from a request to the demo model's tokens, by every way to ask. The temperature makes all tokens about as
likely; so small a part of a deviation leaves the most likely one alone."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import LLM, SamplingParams
from tests.e2e.engines import engine, generate
from tests.e2e.server import DEMO_MODEL, Server

PROMPT = "The list"
HOT = {"temperature": 100.0, "seed": 3, "max_tokens": 16, "ignore_eos": True}
NARROW = {**HOT, "top_n_sigma": 0.0001}
GREEDY = {**HOT, "temperature": 0.0}


def test_over_http(server: Server) -> None:
    def token_ids(path: str, prompt: dict[str, Any], fields: dict[str, Any]) -> list[int]:
        body = {"model": server.model, "return_token_ids": True, **prompt, **fields}
        answer = httpx.post(f"{server.url}/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]

    for path, prompt in (
        ("completions", {"prompt": PROMPT}),
        ("chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ):
        narrow, hot, greedy = (token_ids(path, prompt, fields) for fields in (NARROW, HOT, GREEDY))
        assert narrow == greedy != hot


@pytest.mark.slow
def test_in_a_program() -> None:
    with LLM(str(DEMO_MODEL), num_gpu_blocks_override=400) as llm:
        params = [SamplingParams(**fields) for fields in (NARROW, HOT, GREEDY)]  # type: ignore[arg-type]
        outputs = llm.generate([PROMPT] * 3, params, use_tqdm=False)
        narrow, hot, greedy = (output.outputs[0].token_ids for output in outputs)
    assert narrow == greedy != hot


@pytest.mark.slow
def test_of_an_engine_core(tmp_path: Path) -> None:
    """Over ZeroMQ alone; the rows run in one batch."""

    async def run() -> list[list[int]]:
        async with engine(DEMO_MODEL, tmp_path, num_gpu_blocks_override=400) as client:
            return await asyncio.gather(*(generate(client, [5, 6, 7], **fields) for fields in (NARROW, HOT, GREEDY)))

    narrow, hot, greedy = asyncio.run(run())
    assert narrow == greedy != hot
