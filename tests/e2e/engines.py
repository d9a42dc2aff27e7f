"""An engine core with its workers and a client of it, without HTTP: what the tests of outputs need."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine_core.ipc.heartbeat import Heartbeats, core_line
from frontend.cli.flags import ServeArgs
from frontend.cli.resolve import resolve
from frontend.client import EngineClient
from frontend.launcher import start_core, stop, wait_until_ready


@contextlib.asynccontextmanager
async def engine(folder: Path, run_dir: Path, **arguments: Any) -> AsyncIterator[EngineClient]:
    """A client of a running engine core for the model in `folder`; `arguments` are flags of `quire serve`."""
    args = ServeArgs(model=str(folder), **{"device": "cpu", "num_threads": 2, **arguments})
    config = resolve(args).serve_config(str(run_dir), 0)
    config_file = run_dir / "config.json"
    config_file.write_bytes(msgspec.json.encode(config))
    child = start_core(str(config_file), 0, Heartbeats.create(core_line(1, 1)), 0)
    try:
        await asyncio.to_thread(wait_until_ready, child, lambda progress: None)
        client = EngineClient(config.core_endpoint())
        await client.connect()
        yield client
        await client.close()
    finally:
        stop(child, timeout=0.0)


async def generate(client: EngineClient, prompt: Sequence[int], **sampling: Any) -> list[int]:
    """All tokens of one request."""
    output: list[int] = []
    async for delta in client.generate(prompt, sampling):
        output.extend(delta.token_ids)
    return output


def mixed_prompts(count: int, vocab_size: int, longest: int) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens; some share a beginning, so that a prefix cache has something to find."""
    rng = random.Random(0)
    shared = [rng.randrange(10, vocab_size) for _ in range(longest)]
    prompts = []
    for index in range(count):
        length = rng.randint(1, longest)
        own = [rng.randrange(10, vocab_size) for _ in range(length)]
        kept = rng.randint(0, length) if index % 3 == 0 else 0
        prompts.append([*shared[:kept], *own[kept:]])
    return prompts
