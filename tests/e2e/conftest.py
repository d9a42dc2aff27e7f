"""One server for all tests that leave it as it was; those that end theirs start their own."""

from collections.abc import Callable, Iterator

import openai
import pytest

from tests.e2e.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server("--frontends", "2", "--num-gpu-blocks-override", "2000")
    try:
        yield server.wait_until_ready()
    finally:
        server.close()
    assert server.process.returncode == 0, server.errors()
    server.assert_nothing_left()
    server.remove()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers that belong to one test."""
    servers: list[Server] = []

    def start(*arguments: str, **options: object) -> Server:
        servers.append(Server(*arguments, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()
        server.remove()
