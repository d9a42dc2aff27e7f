"""Jobs in preparation processes: the results of the loop, and what becomes of a process that ends."""

import asyncio
import select
import signal

from benchmarks.stub_config import frontend_config
from frontend.preparation.jobs import EncodeJob
from frontend.preparation.pool import PreparationPool
from frontend.preparation.preparer import Preparer
from tests.frontend.support import write_model_folder


def test_a_heavy_job_has_the_result_of_the_loop_and_an_ended_process_is_replaced(tmp_path):
    write_model_folder(tmp_path)
    pool = PreparationPool(Preparer.load(frontend_config(tmp_path)))

    async def run() -> None:
        light, heavy = EncodeJob(["A fox."], True), EncodeJob(["The quick fox. " * 1000], True)
        assert await pool.run(light) == light.run(pool.preparer)
        assert not pool._idle, "a light job never leaves the loop"
        for _ in range(2):
            assert await pool.run(heavy) == heavy.run(pool.preparer)
            (process,) = pool._idle
            signal.pidfd_send_signal(process._pidfd, signal.SIGKILL)
            select.select([process._pidfd], [], [])

    asyncio.run(run())
    pool.close()
