"""The life of one frontend process: connect, listen, report, drain, end.

The supervisor owns the listening socket and the signals; it speaks to this process over the control link, whose end of
file means that the supervisor is gone and nothing may stay behind.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

from sanic import Sanic
from sanic.application.state import ApplicationServerInfo
from sanic.http.constants import HTTP
from sanic.server.async_server import AsyncioServer

from engine_core.config.engine_config import ServeConfig
from engine_core.ipc.control import ControlLink, Drain, LinkClosed, Ready
from engine_core.ipc.heartbeat import Heartbeats
from frontend import garbage
from frontend.app import build_app
from frontend.client import EngineClient
from frontend.draining import close_connections
from frontend.http_protocol import DeadlineHttpProtocol
from frontend.preparation.pool import PreparationPool
from frontend.responses.store import ResponseStore
from frontend.routes.documentation import openapi_json
from frontend.state import FrontendState
from frontend.web_pages import served_hosts

BACKLOG = 4096
BEAT_SECONDS = 0.5
CONNECT_SECONDS = 86_400.0
"""A core may load for as long as it likes: should it fail, the supervisor ends us."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class FrontendServer:
    """One Sanic server on an inherited socket."""

    def __init__(
        self,
        config: ServeConfig,
        preparation: PreparationPool,
        responses: ResponseStore,
        listener: socket.socket,
        link: ControlLink,
        heartbeats: Heartbeats,
        heartbeat_index: int,
    ) -> None:
        self._listener = listener
        self._link = link
        self._heartbeats = heartbeats
        self._heartbeat_index = heartbeat_index
        self._drain: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._state = FrontendState(config.frontend, EngineClient(config.core_endpoint()), preparation, responses)

    async def run(self) -> None:
        """Returns when the server has been drained."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.fileno(), self._read_link)
        await self._state.client.connect(CONNECT_SECONDS)
        tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._state.keep_alive.run())]
        server = await self._listen()
        garbage.hold()
        self._link.send(Ready(details={"pid": os.getpid()}))
        timeout = await _unless_failed(self._drain, tasks)
        await self._finish(server, timeout)
        for task in tasks:
            task.cancel()
        self._state.preparation.close()
        await self._state.client.close()
        self._state.responses.close()

    async def _listen(self) -> AsyncioServer:
        config = self._state.config
        openapi_json(bool(config.api_key_digests))  # 10 ms that no request has to wait for
        hosts = served_hosts(self._listener.getsockname()[0], config.host, config.allowed_hosts)
        app: Sanic = build_app(self._state, hosts)
        server = await app.create_server(
            sock=self._listener,
            protocol=DeadlineHttpProtocol,
            backlog=BACKLOG,
            access_log=False,
            asyncio_server_kwargs={"start_serving": False},
        )
        assert server is not None
        # Sanic leaves a header for HTTP/3 in every answer unless it sees that there is only HTTP/1.
        app.state.server_info.append(ApplicationServerInfo(settings={"version": HTTP.VERSION_1}))
        await server.startup()
        await server.before_start()
        await server.start_serving()
        await server.after_start()
        return server

    def _read_link(self) -> None:
        try:
            message = self._link.receive()
        except LinkClosed:
            # The supervisor is gone: there is nobody to report to and nothing of ours to save.
            os._exit(1)
        if isinstance(message, Drain) and not self._drain.done():
            self._state.draining = True
            self._drain.set_result(message.timeout)

    async def _beat(self) -> None:
        state = self._state
        while True:
            self._heartbeats.beat(self._heartbeat_index, state.progress, state.client.num_open_requests)
            if state.num_open == 0:
                garbage.collect()
            await asyncio.sleep(BEAT_SECONDS)

    async def _finish(self, server: AsyncioServer, timeout: float) -> None:
        """Lets running requests end. Those that are late are ended with an error, and what clients hold up is cut."""
        state = self._state
        failures = []
        try:
            await asyncio.wait_for(state.wait_idle(), timeout)
        except TimeoutError:
            failures.append(f"Requests not finished within {timeout:g} seconds: {state.num_open}.")
            state.client.fail_open_requests("The server was stopped before the request was finished.")
        server.close()
        if cut := await close_connections(server.connections, lambda: state.num_open):
            failures.append(cut)
        if failures:
            logger.warning(" ".join(failures))


async def _unless_failed(wanted: "asyncio.Future[T]", tasks: Sequence["asyncio.Task[None]"]) -> T:
    """Waits for `wanted` beside tasks that never end. The failure of one of them is ours: we must not go on without."""
    together: list[asyncio.Future[Any]] = [wanted, *tasks]
    await asyncio.wait(together, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
    return await wanted
