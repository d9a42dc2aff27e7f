"""One HTTP frontend, started by the supervisor: `python -P -m frontend RUN/config.json --index I ...`."""

import argparse
import asyncio
import logging
import signal
import socket
import sys

import uvloop

from engine_core.config.engine_config import load_serve_config
from engine_core.config.errors import ConfigError
from engine_core.ipc.control import ControlLink, Failed
from engine_core.ipc.heartbeat import Heartbeats
from frontend.preparation.pool import PreparationPool
from frontend.preparation.preparer import Preparer
from frontend.responses.store import ResponseStore
from frontend.server import FrontendServer
from frontend.supervisor.orphans import adopt_orphans
from frontend.text.tokenizer_files import TokenizerError


def main() -> int:
    parser = argparse.ArgumentParser(prog="frontend")
    parser.add_argument("config")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--heartbeat-fd", type=int, required=True)
    parser.add_argument("--heartbeat-index", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"frontend {arguments.index}: %(levelname)s %(message)s"
    )
    link = ControlLink.from_fd(arguments.link_fd)
    # Preparation processes come and go, and so may the one that forks them: the kernel keeps no zombie of any of them.
    adopt_orphans()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    config = load_serve_config(arguments.config)
    try:
        # Before the loop and ZeroMQ have threads: it forks.
        preparation = PreparationPool(Preparer.load(config.frontend), arguments.config)
        responses = ResponseStore(config.response_store, config.run_dir)
    except (TokenizerError, ConfigError) as error:
        link.send(Failed(message=str(error), exit_code=2))
        return 2

    async def serve() -> None:
        server = FrontendServer(
            config,
            preparation,
            responses,
            socket.socket(fileno=arguments.listen_fd),
            link,
            Heartbeats(arguments.heartbeat_fd),
            arguments.heartbeat_index,
        )
        await server.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
