"""A client's connection: its beginning, and all ways in which client and core can lose each other."""

import asyncio
import struct

import pytest
import zmq

from benchmarks.stub_core import EPOCH, Reply
from engine_core.ipc import messages
from frontend.client import EngineClient, EngineError, wire
from tests.frontend.client_harness import drive, in_thread, stub
from tests.frontend.support import StubCore


def test_the_cores_death_fails_all_open_requests(tmp_path):
    async def work(client: EngineClient) -> None:
        streams = [client.generate([1], {}) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        call = asyncio.create_task(client.utility("forever"))
        await in_thread(core.stop)
        for stream in streams:
            with pytest.raises(EngineError) as caught:
                async for _ in stream:
                    pass
            assert caught.value.code == "engine_dead"
        with pytest.raises(EngineError):
            await call
        assert not client.connected
        with pytest.raises(EngineError) as caught:
            client.generate([1], {})
        assert caught.value.code == "engine_dead"

    with stub(tmp_path, lambda add: Reply(token_ids=[1], endless=True), step_seconds=0.001) as core:
        drive(core, work)


class Source:
    """A socket whose next message the test gives."""

    next: "asyncio.Future"

    def recv(self) -> "asyncio.Future":
        self.next = asyncio.get_running_loop().create_future()
        return self.next

    recv_multipart = recv

    def send(self, frame, copy) -> None:
        pass

    def disable_monitor(self) -> None:
        pass

    def close(self, linger) -> None:
        pass


def test_a_frame_that_was_received_when_the_core_died_counts(monkeypatch):
    """The watcher hears of the death before the reader that was given the frame has run."""

    async def run() -> None:
        client = EngineClient("ipc://nowhere")
        socket, monitor = Source(), Source()
        welcome = {
            "version": wire.PROTOCOL_VERSION,
            "epoch": EPOCH,
            "replica": 0,
            "max_model_len": 9,
            "vocab_size": 9,
            "num_kv_tokens": 9,
        }
        client.info = wire.welcome(welcome)
        monkeypatch.setattr(client, "_socket", socket)
        monkeypatch.setattr(client, "_monitor", monitor)
        monkeypatch.setattr(client, "_take_the_rest", lambda: None)
        stream = client.generate([1], {})
        client._tasks = [asyncio.create_task(client._read(socket)), asyncio.create_task(client._watch(monitor))]
        await asyncio.sleep(0)
        monitor.next.set_result([struct.pack("=HI", zmq.EVENT_DISCONNECTED, 0), b""])
        errors = [(stream.handle, "overloaded", "Full.")]
        socket.next.set_result(wire.pack({"type": "outputs", "epoch": EPOCH, "errors": errors}))
        with pytest.raises(EngineError, match="Full"):
            await anext(stream)
        while client.connected:
            await asyncio.sleep(0)
        await client.close()

    asyncio.run(run())


def test_a_client_that_closes_says_goodbye(tmp_path):
    async def run() -> None:
        client = EngineClient(core._endpoint)
        await client.connect()
        streams = [client.generate([1], {}) for _ in range(3)]
        await client.close()
        for stream in streams:
            with pytest.raises(EngineError):
                await anext(stream)

    with stub(tmp_path, lambda add: Reply(token_ids=[1], endless=True), step_seconds=0.001) as core:
        asyncio.run(run())
        core.wait_for(lambda core: core.received(messages.Bye))
        assert core.num_running == 0


def test_a_client_connects_to_the_successor_of_a_dead_core(tmp_path):
    async def run() -> None:
        def script(add: messages.AddRequest) -> Reply:
            return Reply(token_ids=[1, 2])

        endpoint = f"ipc://{tmp_path}/core.sock"
        first = await asyncio.to_thread(lambda: StubCore(endpoint, script).start())
        client = EngineClient(endpoint)
        await client.connect()
        await asyncio.to_thread(first.pause)
        stream = client.generate([1], {})
        await asyncio.to_thread(first.stop)
        with pytest.raises(EngineError):
            await anext(stream)
        second = await asyncio.to_thread(lambda: StubCore(endpoint, script).start())
        await client.connect()
        tokens = [token async for delta in client.generate([1], {}) for token in delta.token_ids]
        assert tokens == [1, 2]
        await client.close()
        await asyncio.to_thread(second.stop)

    asyncio.run(run())


def test_a_core_that_goes_before_it_answers_is_greeted_again(tmp_path):
    async def run() -> None:
        endpoint = f"ipc://{tmp_path}/core.sock"
        context: zmq.Context = zmq.Context()
        first = context.socket(zmq.ROUTER)
        first.bind(endpoint)
        client = EngineClient(endpoint)
        connecting = asyncio.create_task(client.connect(20))
        await asyncio.to_thread(first.recv_multipart)
        first.close(linger=0)
        context.term()
        with stub(tmp_path, lambda add: Reply()):
            assert (await connecting).epoch == EPOCH
            await client.close()

    asyncio.run(run())


def test_nobody_answers(tmp_path):
    async def run() -> None:
        client = EngineClient(f"ipc://{tmp_path}/nobody.sock")
        with pytest.raises(EngineError, match=r"No engine core answered at ipc://.* within 0\.05 seconds\."):
            await client.connect(timeout=0.05)
        await client.close()

    asyncio.run(run())
