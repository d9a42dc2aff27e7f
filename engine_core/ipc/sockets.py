"""ZeroMQ sockets with the bounds that every link here has: message size, high-water marks, no lingering."""

from pathlib import Path

import zmq

CORE_HIGH_WATER_MARK = 131072
"""Frames queued per peer. Credits bound what a core sends, so reaching it is an error (EAGAIN), never a silent drop."""


def ipc_path(endpoint: str) -> Path:
    """The file of an `ipc://` endpoint."""
    return Path(endpoint.removeprefix("ipc://"))


def bind_private(socket: zmq.Socket, endpoint: str) -> None:
    """Binds to one more `ipc://` endpoint, whose file is this user's alone."""
    socket.bind(endpoint)
    ipc_path(endpoint).chmod(0o600)


def bind_router(context: zmq.Context, endpoint: str, max_frame_bytes: int) -> zmq.Socket:
    """The engine core's side towards its clients. Sending to a client that is gone raises EHOSTUNREACH."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.SNDHWM, CORE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, CORE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.bind(endpoint)
    return socket


def bind_pair(context: zmq.Context, endpoint: str) -> zmq.Socket:
    """The engine core's side of the link to one worker."""
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(endpoint)
    return socket


def connect_pair(context: zmq.Context, endpoint: str) -> zmq.Socket:
    """A worker's side of that link."""
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket
