"""Frames over a stream socket between two of our own processes: a length of 4 bytes, then as many bytes.

Sending never blocks: what the other side has no room for waits here until it has. The kernel takes a frame over within
`send`, so whoever learns by another way what happened after it finds the frame already there.
"""

import socket
import struct

_HEADER = struct.Struct("<I")
_BUFFER_BYTES = 2**20


class FramesClosed(Exception):
    """The other end is gone."""


class FrameSocket:
    """One end. Wait for `fileno()` with a poller, also for writing while `has_unsent`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket = sock
        self._unsent = bytearray()
        self._received = bytearray()

    @classmethod
    def pair(cls) -> tuple["FrameSocket", socket.socket]:
        """Our end, and the socket that the other process makes its own of."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, frame: bytes) -> None:
        """Raises `FramesClosed` when nobody is left to read it."""
        self._unsent += _HEADER.pack(len(frame))
        self._unsent += frame
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room for it."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError) as error:
            raise FramesClosed from error

    def receive(self) -> list[bytes]:
        """All frames that are complete. Raises `FramesClosed` at the end of the stream, once they are taken."""
        is_closed = self._read()
        frames, start = [], 0
        while len(self._received) >= start + _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received, start)
            end = start + _HEADER.size + length
            if len(self._received) < end:
                break
            frames.append(bytes(self._received[start + _HEADER.size : end]))
            start = end
        del self._received[:start]
        if is_closed and not frames:
            raise FramesClosed
        return frames

    def _read(self) -> bool:
        """Whether the stream has ended."""
        try:
            while data := self._socket.recv(_BUFFER_BYTES):
                self._received += data
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self._socket.close()
