"""`quire top`: what a running server's engine core does, once or refreshed every second until Ctrl-C."""

import argparse
import asyncio
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from engine_core.config.errors import ConfigError
from engine_core.ipc.inspection import MAX_ENTRIES, Inspection
from frontend.cli.flags import convert_settings
from frontend.cli.top_report import top_lines
from frontend.supervisor.run_dir import running_run_dirs

REFRESH_SECONDS = 1.0
ANSWER_SECONDS = 5.0
EXIT_NO_ANSWER = 1
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_CLEAR_ALL, _HIDE_CURSOR, _SHOW_CURSOR = "\x1b[2J", "\x1b[?25l", "\x1b[?25h"


class TopArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What `quire top` takes."""

    run_dir: str | None = None
    once: bool = False
    json: bool = False
    limit: Annotated[int, Meta(ge=1, le=MAX_ENTRIES)] = 10


def add_top_flags(parser: argparse.ArgumentParser) -> None:
    add, absent = parser.add_argument, argparse.SUPPRESS
    add("--run-dir", metavar="FOLDER", default=absent, help="the server's (default: that of the only one that runs)")
    add("--once", action="store_true", default=absent, help="print it once instead of every second")
    add("--json", action="store_true", default=absent, help="print a JSON object a line")
    add("--limit", metavar="N", default=absent, help="most chains and most requests (default: 10)")


def run(namespace: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(namespace).items() if name != "command"}
    args = convert_settings(given, TopArgs)
    # Imported here: nobody else of the command line needs ZeroMQ, and the supervisor stays light without it.
    from frontend.client import EngineError

    try:
        asyncio.run(_watch(args, _admin_endpoints(args.run_dir)))
    except EngineError as error:
        print(f"quire: {error.message}", file=sys.stderr)
        return EXIT_NO_ANSWER
    except KeyboardInterrupt:
        pass  # how one leaves it
    return 0


def _admin_endpoints(given: str | None) -> list[str]:
    """The admin sockets, one for each replica, of the server meant."""
    if given is None:
        folders = running_run_dirs()
        if not folders:
            raise ConfigError("No server of this user runs here; --run-dir names one whose folder is elsewhere.")
        if len(folders) > 1:
            names = ", ".join(map(str, folders))
            raise ConfigError(f"{len(folders)} servers run here ({names}); --run-dir says which is meant.")
        folder = folders[0]
    else:
        folder = Path(given).expanduser()
    sockets = sorted(folder.glob("admin*.sock"))
    if not sockets:
        raise ConfigError(f"{folder} has no admin socket: no server runs there, or it is still starting.")
    return [f"ipc://{socket.absolute()}" for socket in sockets]


async def _watch(args: TopArgs, endpoints: list[str]) -> None:
    from frontend.client import EngineClient

    refreshes = not args.once and (args.json or sys.stdout.isatty())
    clients = [EngineClient(endpoint) for endpoint in endpoints]
    draws = refreshes and not args.json
    try:
        for client in clients:
            await client.connect(timeout=ANSWER_SECONDS)
        if draws:
            print(_HIDE_CURSOR + _CLEAR_ALL, end="")
        while True:
            inspections = [
                msgspec.convert(await client.utility("inspect", timeout=ANSWER_SECONDS, limit=args.limit), Inspection)
                for client in clients
            ]
            _show(args, inspections, draws)
            if not refreshes:
                return
            await asyncio.sleep(REFRESH_SECONDS)
    finally:
        if draws:
            print(_SHOW_CURSOR, flush=True)
        for client in clients:
            await client.close()


def _show(args: TopArgs, inspections: list[Inspection], draws: bool) -> None:
    if args.json:
        for inspection in inspections:
            print(msgspec.json.encode(inspection).decode(), flush=True)
        return
    lines = [line for inspection in inspections for line in top_lines(inspection)]
    if not draws:
        print("\n".join(lines))
        return
    width, height = shutil.get_terminal_size()
    shown = "".join(f"{line[:width]}{_CLEAR_LINE}\r\n" for line in lines[: height - 1])
    print(f"{_HOME}{shown}{_CLEAR_BELOW}", end="", flush=True)
