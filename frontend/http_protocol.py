"""Sanic's HTTP connection with absolute deadlines for the head and the body of a request.

Sanic's own timeout starts again with every byte, so that a client that sends one byte a minute keeps its connection.
"""

import time
from typing import Any

from sanic.exceptions import RequestTimeout
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

HEAD_SECONDS = 20.0
BODY_SECONDS = 120.0
KEEP_ALIVE_SECONDS = 120.0
CHECK_SECONDS = 5.0


class DeadlineHttpProtocol(HttpProtocol):
    """One connection."""

    __slots__ = ("_request_began",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._request_began = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self.http is None or self.http.stage is Stage.IDLE:
            self._request_began = time.monotonic()
        super().data_received(data)

    def check_timeouts(self) -> None:
        """Calls itself every few seconds as long as the connection lives."""
        if not self._task or self.http is None:
            return
        stage = self._http.stage
        now = time.monotonic()
        age = now - self._request_began
        if stage is Stage.IDLE and now - self._time > KEEP_ALIVE_SECONDS:
            self._task.cancel()
        elif stage is Stage.REQUEST and age > HEAD_SECONDS:
            self._refuse(f"The request's head did not arrive within {HEAD_SECONDS:g} seconds.")
        elif stage is Stage.HANDLER and self._http.request_body and age > BODY_SECONDS:
            self._refuse(f"The request's body did not arrive within {BODY_SECONDS:g} seconds.")
        else:
            self._callback_check_timeouts = self.loop.call_later(CHECK_SECONDS, self.check_timeouts)

    def _refuse(self, message: str) -> None:
        assert self._http is not None
        assert self._task is not None
        self._http.exception = RequestTimeout(message)
        self._task.cancel()
        # After its answer Sanic reads on to the end of the body, which may never come.
        self._callback_check_timeouts = self.loop.call_later(CHECK_SECONDS, self.abort)
