"""The process that forks preparation processes, started by a frontend whose first one has died:
`python -P -m frontend.preparation RUN/config.json --control-fd N`."""

import argparse
import logging
import socket
import sys

from engine_core.config.engine_config import load_serve_config
from frontend.preparation.preparer import Preparer
from frontend.preparation.processes import end_with_parent, fork_on_demand
from frontend.text.tokenizer_files import TokenizerError


def main() -> int:
    parser = argparse.ArgumentParser(prog="frontend.preparation")
    parser.add_argument("config")
    parser.add_argument("--control-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="preparation: %(levelname)s %(message)s")
    end_with_parent()
    try:
        preparer = Preparer.load(load_serve_config(arguments.config).frontend)
    except TokenizerError as error:
        logging.error("%s", error)
        return 2
    fork_on_demand(socket.socket(fileno=arguments.control_fd), preparer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
