"""Jobs in preparation processes: the results of the loop, and what becomes of a process that ends."""

import asyncio
import errno
import os
import select
import signal
import subprocess
import sys

import pytest

from frontend.errors import ApiError
from frontend.launcher import ONE_THREAD
from frontend.preparation import pool as pool_module
from frontend.preparation import processes
from frontend.preparation.jobs import AnyJob, ChatJob, DetokenizeJob, EncodeJob, GrammarJob
from frontend.protocol.chat import ChatCompletionRequest, ChatMessage
from frontend.protocol.structure import StructureFields
from tests.frontend.support import preparation_pool

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_heavy_job_has_the_result_of_the_loop_and_an_ended_process_is_replaced(tmp_path):
    pool = preparation_pool(tmp_path)

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


def test_a_text_that_takes_too_much_memory_is_refused_and_the_next_one_is_not(tmp_path, monkeypatch):
    """The tokenizer's library ends its process instead of raising an error."""
    monkeypatch.setattr(processes, "JOB_BYTES", 64 * 2**20)
    pool = preparation_pool(tmp_path)

    async def run() -> None:
        with pytest.raises(
            ApiError, match=r"bytes could not be prepared within .* shorter texts would do\."
        ) as refused:
            await pool.run(EncodeJob(["word " * 2**20], True))
        assert refused.value.status == 400
        heavy = EncodeJob(["The quick fox. " * 1000], True)
        assert await pool.run(heavy) == heavy.run(pool.preparer)

    asyncio.run(run())
    pool.close()


def test_a_frontend_has_one_thread_when_it_forks(tmp_path):
    pool = preparation_pool(tmp_path)
    pool.close()
    code = (
        "import os, sys, frontend.__main__\n"
        "from engine_core.config.engine_config import load_serve_config\n"
        "from frontend.preparation.preparer import Preparer\n"
        "Preparer.load(load_serve_config(sys.argv[1]).frontend).encode('A fox.', True)\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    output = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=True)
    assert output.stdout == "1\n"


def test_a_process_that_cannot_be_forked_is_a_503(tmp_path, monkeypatch: pytest.MonkeyPatch):
    parent, fork = os.getpid(), os.fork

    def fork_in_the_parent() -> int:
        if os.getpid() == parent:
            return fork()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(processes.os, "fork", fork_in_the_parent)
    pool = preparation_pool(tmp_path)
    for _ in range(pool_module.NUM_PROCESSES + 1):  # no place stays taken
        with pytest.raises(ApiError, match="No process could be started") as refused:
            asyncio.run(pool.run(EncodeJob(["The quick fox. " * 1000], True)))
        assert (refused.value.status, refused.value.code) == (503, "resources_exhausted")
        assert refused.value.headers == {"Retry-After": "1"}
    pool.close()


def chat_job(content: str, **fields: object) -> ChatJob:
    request = ChatCompletionRequest(messages=[ChatMessage(role="user", content=content)], **fields)  # type: ignore[arg-type]
    return ChatJob(request, wants_grammar=True)


@pytest.mark.parametrize(
    "job",
    [
        chat_job("refuse me", chat_template="{{ raise_exception('No.') }}"),
        chat_job("Hello " * 2000, response_format={"type": "json_schema", "json_schema": {"schema": {"type": 3}}}),
        GrammarJob(StructureFields(guided_grammar="no rule")),
        DetokenizeJob(b'{"tokens": [-1]}' + b" " * 10_000, is_strict=False),
    ],
)
def test_what_is_wrong_is_the_same_error_from_a_process(tmp_path, job: AnyJob):
    pool = preparation_pool(tmp_path, trust_request_chat_template=True)
    assert not job.is_light
    with pytest.raises(ApiError) as here:
        job.run(pool.preparer)
    with pytest.raises(ApiError) as there:
        asyncio.run(pool.run(job))  # type: ignore[arg-type]
    pool.close()
    assert here.value.status == 400
    assert (there.value.body(), there.value.status) == (here.value.body(), here.value.status)


def test_whole_numbers_of_any_length_reach_a_process(tmp_path):
    pool = preparation_pool(tmp_path)
    job = chat_job("Hello " * 2000, guided_json={"type": "integer", "maximum": 10**30})
    assert asyncio.run(pool.run(job)) == job.run(pool.preparer)
    pool.close()


def test_a_template_that_takes_too_long_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for module in (processes, pool_module):
        monkeypatch.setattr(module, "JOB_SECONDS", 0.2)
    pool = preparation_pool(tmp_path, trust_request_chat_template=True)
    with pytest.raises(ApiError, match=r"takes more than 0\.2 seconds") as refusal:
        asyncio.run(pool.run(chat_job("Hello", chat_template=ENDLESS)))
    pool.close()
    assert refusal.value.status == 400


def test_the_loop_turns_during_a_job_and_a_client_that_hangs_up_ends_it(tmp_path):
    pool = preparation_pool(tmp_path, trust_request_chat_template=True)

    async def run() -> int:
        await pool.run(EncodeJob(["The quick fox. " * 1000], True))
        ended = os.dup(pool._idle[0]._pidfd)
        endless = asyncio.create_task(pool.run(chat_job("Hello", chat_template=ENDLESS)))
        light = EncodeJob(["A fox."], True)
        for _ in range(100):
            await asyncio.sleep(0)
            await pool.run(light)
        assert not endless.done()
        endless.cancel()
        await asyncio.wait([endless])
        assert endless.cancelled()
        assert select.select([ended], [], [], 30)[0], "its process is gone"
        os.close(ended)
        return pool._turns.num_running + pool._turns.num_waiting + len(pool._idle)

    assert asyncio.run(run()) == 0
    pool.close()
