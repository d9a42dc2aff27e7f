"""What slow clients may hold up: requests that come a byte at a time, and answers that are not read."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sanic import Request, Sanic
from sanic.response import HTTPResponse, text

from frontend import http_protocol
from frontend.http_protocol import DeadlineHttpProtocol


@contextlib.asynccontextmanager
async def serving(answer: Callable[[Request], Awaitable[HTTPResponse]]) -> AsyncIterator[tuple[str, int]]:
    """The address of a server in this process."""
    app = Sanic("slow", configure_logging=False, env_prefix="")
    app.add_route(answer, "/", methods=["GET", "POST"])
    app.config.TOUCHUP = False  # it rewrites Sanic's own methods, for good
    app.config.RESPONSE_TIMEOUT = app.config.REQUEST_TIMEOUT = 1e9
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        server = await app.create_server(
            sock=listener, protocol=DeadlineHttpProtocol, asyncio_server_kwargs={"start_serving": False}
        )
        assert server is not None
        await server.startup()
        await server.start_serving()
        yield listener.getsockname()
        await server.close()
    finally:
        listener.close()
        Sanic.unregister_app(app)


@pytest.mark.parametrize("start", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"])
def test_a_slow_client_is_refused(monkeypatch, start):
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(http_protocol, name, 0.3)
    monkeypatch.setattr(http_protocol, "CHECK_SECONDS", 0.05)

    async def answer(request: Request) -> HTTPResponse:
        return text("in time")

    async def run() -> bytes:
        async with serving(answer) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(start)
            status = asyncio.create_task(reader.readline())
            while not (await asyncio.wait([status], timeout=0.05))[0]:
                writer.write(b"x")
            with contextlib.suppress(ConnectionResetError):  # it hangs up with some of our bytes unread
                await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()
            return status.result()

    status_line = asyncio.run(asyncio.wait_for(run(), 20))
    assert status_line.startswith(b"HTTP/1.1 408 ")


def test_of_answers_that_nobody_reads_the_oldest_are_cut(monkeypatch):
    """Each is larger than what the kernel takes; there is room for two of them."""
    size = 12 * 2**20
    monkeypatch.setattr(http_protocol, "MAX_UNREAD_BYTES", 2 * size)

    async def answer(request: Request) -> HTTPResponse:
        return text("x" * size)

    async def ask(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*address, limit=4096)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def num_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        count = 0
        with contextlib.suppress(ConnectionResetError):
            while count < size and (data := await reader.read(2**20)):
                count += len(data)
        writer.close()
        return count

    async def run() -> list[bool]:
        async with serving(answer) as address:
            connections = [await ask(address) for _ in range(5)]
            return [await num_read(*connection) == size for connection in connections]

    is_whole = asyncio.run(asyncio.wait_for(run(), 60))
    assert is_whole == sorted(is_whole), "one is cut that was asked for later than one that is not"
    assert not is_whole[0]
    assert is_whole[-2:] == [True, True]
