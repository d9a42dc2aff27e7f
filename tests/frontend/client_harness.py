"""What the tests of the client share: a stub core on a real socket, and a client that is connected to it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.stub_core import Reply
from engine_core.ipc import messages
from frontend.client import EngineClient
from tests.frontend.support import StubCore


@contextmanager
def stub(tmp_path: Path, script: Callable[[messages.AddRequest], Reply], **options) -> Iterator[StubCore]:
    core = StubCore(f"ipc://{tmp_path}/core.sock", script, **options).start()
    try:
        yield core
    finally:
        core.stop()


def drive(core: StubCore, work: Callable[[EngineClient], Awaitable[None]], *, credit: int = 64) -> None:
    """Runs `work` with a connected client."""

    async def run() -> None:
        async with EngineClient(core._endpoint, credit=credit) as client:
            async with asyncio.timeout(30):
                await work(client)

    asyncio.run(run())


async def in_thread(function: Callable[[], object]) -> object:
    return await asyncio.to_thread(function)
