"""The control link between a parent process and its child: a SOCK_SEQPACKET pair that carries small msgpack messages.

A child reports how its start goes and when it is ready; a parent asks it to drain. Either side's end of file means that
the other one is gone: a child then ends at once, so that nothing outlives its parent.
"""

import socket
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_CONTROL_BYTES = 64 * 2**10


class _Control(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Progress(_Control, frozen=True, kw_only=True, tag="progress"):
    """How far a stage of the start has come; `unit` is "B" for bytes or a plural noun."""

    stage: str
    done: int
    total: int
    unit: str


class Ready(_Control, frozen=True, kw_only=True, tag="ready"):
    """The child serves. `details` are figures for the start-up report."""

    details: dict[str, str | int | float] = {}


class Failed(_Control, frozen=True, kw_only=True, tag="failed"):
    """The child cannot go on; `message` is one sentence for the user, `exit_code` what the program should end with."""

    message: Annotated[str, Meta(max_length=8192)]
    exit_code: int = 1


class Drain(_Control, frozen=True, kw_only=True, tag="drain"):
    """Take nothing new, finish what runs within `timeout` seconds, then exit 0."""

    timeout: float


ControlMessage = Progress | Ready | Failed | Drain


class LinkClosed(Exception):
    """The other end of a control link is gone."""


class ControlLink:
    """One end of a control link. `receive` never blocks: wait for `fileno()` with a poller."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ControlMessage)

    @classmethod
    def pair(cls) -> tuple["ControlLink", "ControlLink"]:
        """Two connected ends; hand one's `fileno()` to the child through `pass_fds`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def from_fd(cls, fd: int) -> "ControlLink":
        """The end that this process inherited."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ControlMessage) -> None:
        """Sends one message. Raises `LinkClosed` when nobody is left to read it."""
        try:
            self._socket.setblocking(True)
            self._socket.send(self._encoder.encode(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LinkClosed from error
        finally:
            self._socket.setblocking(False)

    def receive(self) -> ControlMessage | None:
        """The next message, or None when there is none yet. Raises `LinkClosed` at the end of file."""
        try:
            data = self._socket.recv(MAX_CONTROL_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise LinkClosed from error
        if not data:
            raise LinkClosed
        return self._decoder.decode(data)

    def close(self) -> None:
        self._socket.close()
