"""The listening sockets: one per frontend, all on the same address, kept by the supervisor.

With SO_REUSEPORT the kernel spreads connections evenly over the sockets; one shared socket gives most of them to
whichever process wakes first. They are only bound here: a frontend listens once it can answer, so that until then a
client is refused at once instead of left waiting.
"""

import socket

from engine_core.config.errors import ConfigError


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` bound sockets. Port 0 becomes a free one, the same for all. Raises `ConfigError` in one sentence."""
    sockets: list[socket.socket] = []
    try:
        family, address = _resolve(host, port)
        if port:
            _check_free(family, address)
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            address = sock.getsockname()  # the others take the port that the first one got
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from None
    return sockets


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    return family, address


def _check_free(family: socket.AddressFamily, address: tuple) -> None:
    """SO_REUSEPORT would let us share the port with another server of the same user and take half of its clients."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not matter
        probe.bind(address)


def url_of(host: str, port: int) -> str:
    """The address for people and clients."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
