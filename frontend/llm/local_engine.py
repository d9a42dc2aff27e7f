"""An engine core of our own for a Python program: its process, its run directory, and an event loop in a thread.

What `LLM` needs of the machinery below it; knows nothing of prompts or text.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from engine_core.ipc.control import Progress
from engine_core.ipc.heartbeat import Heartbeats, core_line
from frontend.cli.resolve import Resolved
from frontend.client import EngineClient, EngineError
from frontend.launcher import Child, StartError, start_core, stop, wait_until_ready
from frontend.supervisor.run_dir import RunDir, remove_stale_run_dirs

T = TypeVar("T")


class LocalEngine:
    """Started on construction. `run` executes coroutines beside the client; `close` leaves nothing behind."""

    def __init__(self, resolved: Resolved, on_progress: Callable[[Progress], None]) -> None:
        """Raises `StartError` when the engine does not come up."""
        self.config = resolved.engine
        self._core: Child | None = None
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        remove_stale_run_dirs()
        self._run_dir = RunDir()
        try:
            config = resolved.serve_config(self._run_dir.path, port=0)
            self._run_dir.write_config(config)
            self._heartbeats = Heartbeats.create(core_line(1, self.config.parallel.world_size))
            self._core = start_core(self._run_dir.config_file, 0, self._heartbeats, index=0)
            wait_until_ready(self._core, on_progress)
            self._thread = threading.Thread(target=self._loop.run_forever, name="quire-client", daemon=True)
            self._thread.start()
            self.client: EngineClient = self.run(self._connect(config.core_endpoint()))
        except BaseException:
            self.close()
            raise

    async def _connect(self, endpoint: str) -> EngineClient:
        client = EngineClient(endpoint)
        await client.connect()
        return client

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it on the client's loop and waits; a Ctrl-C here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def explain(self, error: EngineError) -> EngineError:
        """The same error in the core's own words, if it left any before it ended."""
        if self._core is not None and self._core.is_link_open:
            self._core.receive()
        if self._core is None or self._core.failed is None:
            return error
        return EngineError(error.code, self._core.failed.message)

    def close(self) -> None:
        """Ends the client, its thread, the core and its workers, and the run directory. May be called twice."""
        if self._thread is not None:
            if hasattr(self, "client"):
                self.run(self.client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None
        if not self._loop.is_running() and not self._loop.is_closed():
            self._loop.close()
        if self._core is not None:
            stop(self._core, timeout=0.0)
            self._core = None
        self._run_dir.remove()


__all__ = ["LocalEngine", "StartError"]
