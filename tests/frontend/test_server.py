"""A frontend's own tasks."""

import asyncio

import pytest

from frontend.server import _unless_failed


def test_a_task_that_fails_fails_the_frontend():
    async def run(fails: bool) -> float:
        loop = asyncio.get_running_loop()
        wanted: asyncio.Future[float] = loop.create_future()

        async def beat() -> None:
            if fails:
                raise OSError("no more heartbeats")
            loop.call_soon(wanted.set_result, 3.0)
            await loop.create_future()

        return await _unless_failed(wanted, [asyncio.create_task(beat())])

    assert asyncio.run(run(fails=False)) == 3.0
    with pytest.raises(OSError, match="no more heartbeats"):
        asyncio.run(run(fails=True))
