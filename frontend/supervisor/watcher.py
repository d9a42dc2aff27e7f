"""Waiting for whatever happens next: a message of a child, its end, a signal, or a deadline of the caller's."""

import contextlib
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator

import msgspec

from engine_core.ipc.control import ControlMessage
from frontend.launcher import Child

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Reported(msgspec.Struct, frozen=True):
    """A child said something over its link."""

    child: Child
    message: ControlMessage


class Ended(msgspec.Struct, frozen=True):
    """A child is gone and reaped."""

    child: Child


class Signalled(msgspec.Struct, frozen=True):
    """Somebody asked us to stop."""

    number: int


class TimedOut(msgspec.Struct, frozen=True):
    """The deadline that was given passed before anything happened."""


Event = Reported | Ended | Signalled | TimedOut


class Watcher:
    """Turns descriptors into events. Signals arrive as events from `start` to `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._events: deque[Event] = deque()
        self._wakeup, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        # The handlers do nothing: Python writes the signal's number to the wakeup descriptor, and that is the event.
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._old_wakeup = signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)

    def add(self, child: Child) -> None:
        self._selector.register(child.link, selectors.EVENT_READ, child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)

    def wait(self, deadline: float | None = None) -> Event:
        """The next thing that happened; blocks until there is one, or until `deadline` (of the monotonic clock)."""
        while not self._events:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = self._selector.select(timeout)
            # Last words before deaths: a child that failed sent its sentence and then ended.
            for key, _ in sorted(ready, key=lambda item: isinstance(item[0].fileobj, int)):
                self._events.extend(self._events_of(key))
            if not ready:
                return TimedOut()
        return self._events.popleft()

    def _events_of(self, key: selectors.SelectorKey) -> Iterator[Event]:
        if key.fileobj is self._wakeup:
            yield from (Signalled(number) for number in self._wakeup.recv(64) if number in SIGNALS)
        elif key.fileobj == key.data.pidfd:
            yield from self._end(key.data)
        elif key.data.is_link_open:
            yield from self._messages(key.data)

    def _messages(self, child: Child) -> Iterator[Event]:
        link_fd = child.link.fileno()
        for message in child.receive():
            yield Reported(child, message)
        if not child.is_link_open:
            self._selector.unregister(link_fd)

    def _end(self, child: Child) -> Iterator[Event]:
        if child.is_link_open:
            yield from self._messages(child)
        if child.is_link_open:
            self._selector.unregister(child.link)
        self._selector.unregister(child.pidfd)
        child.reap()
        yield Ended(child)

    def close(self) -> None:
        """Gives signals back to whoever had them."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            with contextlib.suppress(TypeError):  # a handler that was not set from Python cannot be set again
                signal.signal(number, handler)
        self._selector.close()
        self._wakeup.close()
        self._wakeup_writer.close()
