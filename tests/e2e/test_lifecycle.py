"""How a server ends: asked to, asked twice, or because a process of it was killed. Nothing may be left in any case."""

import concurrent.futures
import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.config.models import make_model_folder
from tests.e2e.server import Server, wait_for_end

Start = Callable[..., Server]
LENGTH = 400


class Load:
    """Some long streams; `running` returns once each has brought its first token."""

    def __init__(self, server: Server, count: int = 4) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(count)
        self._started = [threading.Event() for _ in range(count)]
        self._streams = [self._pool.submit(self._stream, server, event) for event in self._started]

    def _stream(self, server: Server, started: threading.Event) -> Any:
        """How the stream ended: its finish reason and usage, or the error."""
        reason, usage = None, None
        try:
            with server.client() as client:
                for chunk in client.completions.create(
                    model=server.model,
                    prompt="The list",
                    max_tokens=LENGTH,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                ):
                    started.set()
                    reason = chunk.choices[0].finish_reason if chunk.choices else reason
                    usage = chunk.usage or usage
            return reason, usage.completion_tokens if usage else None
        except openai.OpenAIError as error:
            return error
        finally:
            started.set()

    def running(self) -> "Load":
        for event in self._started:
            assert event.wait(60)
        return self

    def ends(self) -> list[Any]:
        ends = [stream.result(120) for stream in self._streams]
        self._pool.shutdown()
        return ends


@pytest.mark.slow
def test_sigterm_lets_running_streams_finish(start: Start) -> None:
    server = start("--frontends", "2").wait_until_ready()
    load = Load(server).running()
    server.signal(signal.SIGTERM)
    assert load.ends() == [("length", LENGTH)] * 4
    assert server.wait() == 0
    server.assert_nothing_left()
    assert server.complaints() == ["quire: SIGTERM: finishing what runs, for up to 30 s."]


@pytest.mark.slow
def test_new_requests_are_refused_while_draining(start: Start) -> None:
    server = start().wait_until_ready()
    load = Load(server).running()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/ready").status_code == 200
        server.signal(signal.SIGTERM)
        # The order is asynchronous: ready first, then not ready, then nobody there.
        try:
            while client.get("/ready").status_code == 200:
                pass
        except httpx.TransportError:
            pass
    assert load.ends() == [("length", LENGTH)] * 4
    assert server.wait() == 0
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_drain_has_a_limit(start: Start) -> None:
    server = start("--drain-timeout", "0").wait_until_ready()
    load = Load(server).running()
    server.signal(signal.SIGINT)
    assert server.wait(20) == 0
    for end in load.ends():
        assert isinstance(end, openai.OpenAIError) or end != ("length", LENGTH)
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--drain-timeout", "3600").wait_until_ready()
    load = Load(server).running()
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait(20) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    load.ends()
    server.assert_nothing_left()


def test_an_idle_server_ends_with_ctrl_c(start: Start) -> None:
    server = start().wait_until_ready()
    server.signal(signal.SIGINT)
    assert server.wait(20) == 0
    server.assert_nothing_left()


def test_sigterm_during_the_start(start: Start) -> None:
    server = start()
    assert server.process.stdout is not None
    server.process.stdout.readline()  # the report is printed before the first child is started
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0
    server.assert_nothing_left()
    assert server.complaints() == ["quire: Stopped by SIGTERM during the start."]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gpu_workers", "engine_core"])
def test_a_killed_engine_ends_its_requests_with_an_error(start: Start, module: str) -> None:
    server = start().wait_until_ready()
    load = Load(server).running()
    os.kill(server.processes(module)[0], signal.SIGKILL)
    for end in load.ends():
        assert isinstance(end, openai.APIError), end
        assert str(end)
    assert server.wait() == 1
    assert len(server.complaints()) == 1
    assert "Traceback" not in "\n".join(server.errors())
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_killed_frontend_ends_the_server(start: Start) -> None:
    server = start().wait_until_ready()
    os.kill(server.processes("frontend")[0], signal.SIGKILL)
    assert server.wait() == 1
    assert server.complaints() == ["quire: The frontend was killed by SIGKILL."]
    server.assert_nothing_left()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile, and is gone afterwards in any case."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"), [("gpu_workers", "Worker 0 of replica 0"), ("engine_core", "Engine core 0")]
)
def test_an_engine_that_hangs_ends_its_requests_with_an_error(start: Start, module: str, name: str) -> None:
    server = start("--hang-timeout", "4").wait_until_ready()
    load = Load(server).running()
    with stopped(server.processes(module)[0]):
        for end in load.ends():
            assert isinstance(end, openai.APIError), end
            assert str(end)
            assert "grammar" not in str(end), "that was killed with it"
        assert server.wait(20) == 1
    (complaint,) = server.complaints()
    assert re.fullmatch(rf"quire: {name} hangs: no sign of life since \d\d:\d\d:\d\d, for [4-9] s\.", complaint)
    assert "Traceback" not in "\n".join(server.errors())
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_frontend_that_hangs_ends_the_server(start: Start) -> None:
    server = start("--hang-timeout", "4").wait_until_ready()
    with stopped(server.processes("frontend")[0]):
        assert server.wait(40) == 1
    (complaint,) = server.complaints()
    assert complaint.startswith("quire: Frontend 0 hangs: no sign of life since ")
    server.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gpu_workers", "engine_core", "frontend"])
def test_what_stands_still_does_not_keep_a_server_from_stopping(start: Start, module: str) -> None:
    server = start("--drain-timeout", "0", "--hang-timeout", "0").wait_until_ready()
    with stopped(server.processes(module)[0]):
        server.signal(signal.SIGTERM)
        assert server.wait(40) in (0, 1)
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_process(start: Start) -> None:
    server = start("--frontends", "2").wait_until_ready()
    children = server.processes()
    # Core, worker, two frontends with a forking child each, the grammar process and its forking child.
    assert len(children) == 8
    load = Load(server).running()
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    wait_for_end(children)
    load.ends()
    server.assert_nothing_left(run_dir=True)
    # Its run directory could not be removed; the next start does that.
    assert len(list(server.temp.glob("quire-*"))) == 1
    successor = start(temp=server.temp).wait_until_ready()
    assert len(list(server.temp.glob("quire-*"))) == 1
    successor.close()
    assert list(server.temp.glob("quire-*")) == []


@pytest.mark.slow
def test_what_only_the_worker_can_see_is_one_sentence_too(start: Start, tmp_path: Path) -> None:
    """Tensors that no part of a Llama takes: header and config.json are fine, the start fails later."""
    folder = make_model_folder(tmp_path / "model", attention_bias=True)
    server = start(model=folder)
    assert server.wait() == 2
    assert len(server.complaints()) == 1
    assert "Traceback" not in "\n".join(server.errors())
    server.assert_nothing_left()


@pytest.mark.slow
def test_a_damaged_tokenizer_is_one_sentence_too(start: Start, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    server = start(model=folder)
    assert server.wait() == 2
    assert len(server.complaints()) == 1
    assert "Traceback" not in "\n".join(server.errors())
    server.assert_nothing_left()


@pytest.mark.slow
def test_two_servers_side_by_side(start: Start) -> None:
    first, second = start(), start()
    for server in (first, second):
        server.wait_until_ready()
    assert first.url != second.url
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    with second.client() as client:
        assert client.completions.create(model=second.model, prompt="a", max_tokens=2).choices[0].text is not None
