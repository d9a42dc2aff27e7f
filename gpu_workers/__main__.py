"""The entry of a worker process. The engine core starts it and hands down the descriptors:

    python -P -m gpu_workers RUN/config.json --replica R --rank r --plan-fd N --lifeline-fd L \
        --heartbeat-fd H --heartbeat-index I --late-bell-fd E [--result-fd M]

Only the worker that publishes results gets their ring.

Exit codes: 0 the parent is gone, 1 a crash, 2 something that the user gave cannot be served.
"""

import argparse
import os
import sys
import traceback

import zmq

from engine_core.config.engine_config import ServeConfig, load_serve_config
from engine_core.config.errors import ConfigError
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.sockets import connect_pair
from gpu_workers.threads import prepare_environment


def main() -> int:
    arguments = _parse_arguments()
    config = load_serve_config(arguments.config)
    prepare_environment()  # before torch is imported: its thread pool reads the environment once
    context = zmq.Context()
    socket = connect_pair(context, config.worker_endpoint(arguments.replica, arguments.rank))
    try:
        return _run(config, context, socket, arguments)
    finally:
        context.destroy()


def _run(
    config: ServeConfig,
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    arguments: argparse.Namespace,
) -> int:
    from gpu_workers.threads import limit_threads
    from gpu_workers.worker import ParentGone, Worker, WorkerLinks

    limit_threads(config.engine)
    place = config.engine.places(arguments.replica)[arguments.rank]
    bell = connect_pair(context, config.bell_endpoint(arguments.replica)) if place.publishes else None
    links = WorkerLinks.open(
        config.engine,
        socket,
        bell,
        arguments.plan_fd,
        arguments.result_fd,
        arguments.lifeline_fd,
        place,
        Heartbeats(arguments.heartbeat_fd),
        arguments.heartbeat_index,
        arguments.late_bell_fd,
    )
    try:
        Worker(config.engine, links).run()
    except ParentGone:
        return 0
    except ConfigError as error:
        links.report_failure(str(error), exit_code=2)
        return 2
    except Exception as error:  # noqa: BLE001 - a process's entry: whatever it was, the engine core must hear of it
        traceback.print_exc()
        links.report_failure(f"Worker {arguments.rank} failed: {type(error).__name__}: {error}", exit_code=1)
        return 1
    raise AssertionError("a worker's loop ends by an exception only")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_workers", description="A worker process, started by the engine core.")
    parser.add_argument("config")
    for name in (
        "replica",
        "rank",
        "plan-fd",
        "lifeline-fd",
        "heartbeat-fd",
        "heartbeat-index",
        "late-bell-fd",
    ):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--result-fd", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to clean up, and taking torch apart costs time in which the parent would wait.
    os._exit(status)
