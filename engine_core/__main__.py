"""The engine core process: `python -P -m engine_core RUN/config.json --replica R --link-fd N ...`, started by Quire."""

import argparse
import logging
import sys
from pathlib import Path

import zmq

from engine_core import garbage
from engine_core.config.engine_config import ServeConfig, load_serve_config
from engine_core.config.errors import ConfigError
from engine_core.engine_core import EngineCore
from engine_core.executors.base import ExecutorFailed
from engine_core.executors.local import LocalExecutor
from engine_core.grammar.process import GrammarProcess
from engine_core.ipc.control import ControlLink, Failed, LinkClosed, Progress, Ready
from engine_core.ipc.heartbeat import Heartbeats, grammar_line
from engine_core.ipc.messages import ERROR_ENGINE_DEAD, ERROR_SHUTTING_DOWN, MAX_CLIENT_FRAME_BYTES
from engine_core.ipc.sockets import bind_private, bind_router, ipc_path

logger = logging.getLogger("engine_core")

LINGER_MS = 2000
"""How long the last replies may take to leave when the core ends."""


def main() -> int:
    """Runs one replica; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine_core", description=__doc__)
    parser.add_argument("config")
    for name in ("replica", "link-fd", "heartbeat-fd", "heartbeat-index"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(format="engine_core: %(levelname)s: %(message)s", level=logging.INFO)
    config = load_serve_config(arguments.config)
    link = ControlLink.from_fd(arguments.link_fd)
    heartbeats = Heartbeats(arguments.heartbeat_fd)
    context = zmq.Context()
    executor = LocalExecutor(
        config, arguments.config, arguments.replica, context, heartbeats, arguments.heartbeat_index
    )
    grammars = GrammarProcess(
        arguments.config,
        arguments.replica,
        executor.plan_fd,
        executor.late_bells,
        heartbeats,
        grammar_line(arguments.heartbeat_index, config.engine.parallel.world_size),
    )
    try:
        return serve(config, context, executor, grammars, link, heartbeats, arguments)
    except LinkClosed:
        return 1  # the parent is gone; there is nobody to tell
    finally:
        grammars.close()
        executor.shutdown()
        context.destroy(linger=0)


def serve(
    config: ServeConfig,
    context: zmq.Context,
    executor: LocalExecutor,
    grammars: GrammarProcess,
    link: ControlLink,
    heartbeats: Heartbeats,
    arguments: argparse.Namespace,
) -> int:
    """Starts the workers, serves, and tells the parent how it went."""
    endpoint, admin_endpoint = config.core_endpoint(arguments.replica), config.admin_endpoint(arguments.replica)
    router = bind_router(context, endpoint, MAX_CLIENT_FRAME_BYTES)
    bind_private(router, admin_endpoint)
    try:
        if not executor.start(
            lambda stage, done, total, unit: link.send(Progress(stage=stage, done=done, total=total, unit=unit)),
            interrupts=[link.fileno()],
        ) or not grammars.wait_until_ready(interrupts=[link.fileno()]):
            return 1
    except ExecutorFailed as failure:
        link.send(Failed(message=str(failure), exit_code=failure.exit_code))
        return failure.exit_code
    try:
        core = EngineCore(
            config.engine,
            executor,
            router,
            link,
            heartbeats,
            arguments.heartbeat_index,
            arguments.replica,
            config.frontend.served_model_names[0],
            grammars,
        )
    except ConfigError as error:  # what `quire serve` had read was changed meanwhile
        link.send(Failed(message=str(error), exit_code=2))
        return 2
    details = {"replica": arguments.replica, "device_free_bytes": executor.device_free_bytes}
    link.send(Ready(details=details))
    garbage.hold()
    try:
        return run(core, link, arguments.replica)
    finally:
        router.close(linger=LINGER_MS)
        if config.engine.trace_file is not None:
            _write_timeline(core, Path(config.engine.trace_file))
        for name in (endpoint, admin_endpoint):
            ipc_path(name).unlink(missing_ok=True)


def run(core: EngineCore, link: ControlLink, replica: int) -> int:
    """Serves until the end, however that comes; clients get their answers and the parent is told why. Raises
    `LinkClosed`."""
    try:
        core.run()
    except ExecutorFailed as failure:
        message = reason = str(failure)
    except LinkClosed:
        raise
    except Exception as error:  # noqa: BLE001 - the process' entry: whatever it was, clients wait for an answer
        message = "The engine core failed; the server's log says why."
        reason = f"The engine core of replica {replica} failed: {core.work.explain(error)}."
    else:
        core.fail_all(ERROR_SHUTTING_DOWN, "The engine is shutting down.")
        return 0
    core.fail_all(ERROR_ENGINE_DEAD, message)
    link.send(Failed(message=reason, exit_code=1))
    return 1


def _write_timeline(core: EngineCore, path: Path) -> None:
    try:
        core.timeline.write(path)
    except OSError as error:
        logger.warning("The step timeline cannot be written to %s: %s.", path, error.strerror)
    else:
        logger.info("The step timeline stands in %s.", path)


if __name__ == "__main__":
    sys.exit(main())
