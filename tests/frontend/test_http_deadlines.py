"""A client that sends its request a byte at a time is refused when its time is up, however busy it looks."""

import asyncio
import contextlib
import socket

import pytest
from sanic import Request, Sanic
from sanic.response import HTTPResponse, text

from frontend import http_protocol
from frontend.http_protocol import DeadlineHttpProtocol


@pytest.mark.parametrize("start", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"])
def test_a_slow_client_is_refused(monkeypatch, start):
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(http_protocol, name, 0.3)
    monkeypatch.setattr(http_protocol, "CHECK_SECONDS", 0.05)

    async def answer(request: Request) -> HTTPResponse:
        return text("in time")

    async def run() -> bytes:
        app = Sanic("slow", configure_logging=False, env_prefix="")
        app.add_route(answer, "/", methods=["GET", "POST"])
        app.config.TOUCHUP = False  # it rewrites Sanic's own methods, for good
        app.config.RESPONSE_TIMEOUT = app.config.REQUEST_TIMEOUT = 1e9
        listener = socket.create_server(("127.0.0.1", 0))
        server = await app.create_server(
            sock=listener, protocol=DeadlineHttpProtocol, asyncio_server_kwargs={"start_serving": False}
        )
        assert server is not None
        await server.startup()
        await server.start_serving()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(start)
        status = asyncio.create_task(reader.readline())
        while not (await asyncio.wait([status], timeout=0.05))[0]:
            writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):  # it hangs up with some of our bytes unread
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        await server.close()
        listener.close()
        return status.result()

    try:
        status_line = asyncio.run(asyncio.wait_for(run(), 20))
    finally:
        Sanic.unregister_app(Sanic.get_app("slow"))
    assert status_line.startswith(b"HTTP/1.1 408 ")
