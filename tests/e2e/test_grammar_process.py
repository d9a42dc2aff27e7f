"""The grammar process and the scheduler under it: preemption, the prefix cache, its death and its hang."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from benchmarks.shapes import write_model_folder
from frontend.tokenizer import TextTokenizer
from quire import EngineError
from tests.e2e.engines import engine
from tests.e2e.json_validator import is_valid
from tests.e2e.server import DEMO_MODEL, Server, wait_for_end

pytestmark = pytest.mark.slow

SCHEMA: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_preemption_and_the_prefix_cache(tmp_path: Path) -> None:
    """Far more requests than blocks: rows are preempted and computed again, and every output still validates."""

    async def run() -> None:
        grammar = json.dumps({"grammars": [{"json_schema": SCHEMA}]})
        prompt = list(range(20, 120))
        async with engine(
            DEMO_MODEL, tmp_path, num_gpu_blocks_override=14, max_model_len=224, max_num_seqs=8
        ) as client:
            free: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
            bound: dict[str, Any] = {"max_tokens": 100, "temperature": 1.0, "grammar": grammar}
            wishes = [{**(bound if seed % 2 else free), "seed": seed} for seed in range(12)]

            async def one(sampling: dict[str, Any]) -> tuple[list[int], Any]:
                tokens, finished = [], None
                async for delta in client.generate(prompt, sampling):
                    tokens.extend(delta.token_ids)
                    finished = delta.finished or finished
                return tokens, finished

            results = await asyncio.gather(*(one(wish) for wish in wishes))
            assert sum(finished.num_preemptions for _, finished in results) > 0
            assert sum(finished.num_cached_tokens for _, finished in results) > 0
            decode = _decoder()
            for wish, (tokens, finished) in zip(wishes, results, strict=True):
                if "grammar" in wish and finished.reason == "stop":
                    assert is_valid(json.loads(decode(tokens[:-1])), SCHEMA)
            assert sum(finished.reason == "stop" for _, finished in results) >= 2
            with pytest.raises(EngineError, match="grammar"):
                await one({"grammar": "start: nothing"})

    asyncio.run(run())


def _decoder() -> Callable[[list[int]], str]:
    tokenizer = TextTokenizer.from_folder(str(DEMO_MODEL))
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)


def test_the_grammar_process_dies(start: Callable[..., Server]) -> None:
    """The server ends with one clear line and leaves nothing behind."""
    server = start("--frontends", "1", "--num-gpu-blocks-override", "500").wait_until_ready()
    (pid, *_) = server.processes("engine_core.grammar")
    pids = server.processes()
    os.kill(pid, signal.SIGKILL)
    assert server.wait() == 1
    wait_for_end(pids)
    assert server.complaints() == ["quire: The grammar process of replica 0 died (signal 9)."]
    server.assert_nothing_left()


def test_the_process_that_tries_grammars_dies(start: Callable[..., Server]) -> None:
    server = start("--frontends", "1", "--num-gpu-blocks-override", "500").wait_until_ready()
    pids = server.processes("engine_core.grammar")
    (trials,) = [pid for pid in pids if psutil.Process(pid).ppid() in pids]
    os.kill(trials, signal.SIGKILL)
    assert server.wait() == 1
    assert "Traceback" not in "\n".join(server.errors())
    server.assert_nothing_left()


@pytest.mark.parametrize("is_in_time", [False, True])
def test_a_late_mask_holds_up_its_own_request_alone(start: Callable[..., Server], is_in_time: bool) -> None:
    """While the grammar process stands still, free text goes on. A request that it is too late for fails; one for which
    it comes back in time has the answer that it would have had."""
    timeout = "600" if is_in_time else "2"
    small = ("--frontends", "1", "--num-gpu-blocks-override", "500", "--mask-timeout", timeout)
    server = start(*small).wait_until_ready()
    pids = server.processes("engine_core.grammar")
    body: dict[str, Any] = {
        "model": server.model,
        "prompt": "Count: ",
        "max_tokens": 120,
        "temperature": 0,
        "stream": True,
        "extra_body": {"structured_outputs": {"regex": "[a-z ]{300}"}},
    }

    def stop(number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    with server.client() as client:
        stream = iter(client.completions.create(**body))
        text = next(stream).choices[0].text
        stop(signal.SIGSTOP)
        free = client.completions.create(
            model=server.model, prompt="Once", max_tokens=100, extra_body={"ignore_eos": True}
        )
        assert free.usage is not None
        assert free.usage.completion_tokens == 100
        if is_in_time:
            stop(signal.SIGCONT)
            text += "".join(chunk.choices[0].text for chunk in stream)
            assert text == "".join(chunk.choices[0].text for chunk in client.completions.create(**body))
        else:
            with pytest.raises(openai.APIError, match="mask has not come for 2 s"):
                list(stream)
            stop(signal.SIGCONT)
    assert server.complaints() == []


def test_the_grammar_process_hangs(start: Callable[..., Server]) -> None:
    server = start("--frontends", "1", "--num-gpu-blocks-override", "500", "--hang-timeout", "3").wait_until_ready()
    for pid in server.processes("engine_core.grammar"):
        os.kill(pid, signal.SIGSTOP)
    with server.client() as client, pytest.raises(openai.APIError):
        client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "Who?"}],
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        )
    assert server.wait() == 1
    (line,) = [line for line in server.complaints() if "hangs" in line]
    assert "grammar process" in line
    server.assert_nothing_left()


def test_a_model_without_grammars_is_served_under_load(start: Callable[..., Server], tmp_path: Path) -> None:
    """Its grammar process has ended in good order, and is not taken for one that hangs."""
    timeout = 3.0
    folder = write_model_folder("tiny-llama8b", tmp_path)  # without a token that ends an answer
    small = ("--load-format", "dummy", "--frontends", "1", "--kv-cache-memory-bytes", "64M")
    server = start(*small, "--hang-timeout", str(timeout), model=folder).wait_until_ready()
    assert not server.processes("engine_core.grammar")
    ready = time.monotonic()
    with server.client() as client:
        while time.monotonic() < ready + 3 * timeout:
            stream = client.completions.create(
                model=server.model, prompt=[1, 2, 3], max_tokens=500, stream=True, extra_body={"ignore_eos": True}
            )
            assert list(stream)[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="end-of-sequence"):
            client.completions.create(
                model=server.model, prompt=[1], extra_body={"structured_outputs": {"choice": ["t1", "t2"]}}
            )
    assert server.complaints() == []
