"""The subcommands of `quire`. Each is a file of its own; what they share is how settings are read and refused."""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from engine_core.config.errors import ConfigError
from frontend.cli import plan, serve, top
from frontend.cli.config_file import read_config_file
from frontend.cli.flags import ServeArgs, add_flags, make_args
from frontend.version import quire_version

EXIT_CONFIG = 2


class Command(NamedTuple):
    """A subcommand: what it is for, its flags, and what it does with them; `run` returns the exit code."""

    description: str
    add_flags: Sequence[Callable[[argparse.ArgumentParser], None]]
    run: Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage text is what --help is for."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quire", description="An inference and serving engine for large language models.")
    parser.add_argument("--version", action="version", version=f"quire {quire_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        description = command.description
        # No abbreviations: a flag that is added later must not change what a shortened one means.
        subparser = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
        _add_flags(subparser, name)
    return parser


def _add_flags(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    for add in COMMANDS[command].add_flags:
        add(parser)
    return parser


def parse_command_line(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises `ConfigError`, also for what the subcommand does not know."""
    namespace, unknown = build_parser().parse_known_args(argv)
    if unknown:
        raise ConfigError(_about_unknown(namespace.command, unknown))
    return namespace


def _about_unknown(command: str, words: Sequence[str]) -> str:
    """What the user may have meant. A flag counts before other words, which may have been meant as its value."""
    see = f"(see quire {command} --help)"
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if flag is None:
        return f"quire {command} does not know what {words[0]!r} is for {see}."
    known = {name: _flags_of(name) for name in COMMANDS}
    others = [f"quire {name}" for name in COMMANDS if flag in known[name]]
    if others:
        return f"{flag} is no flag of quire {command}: it belongs to {' and '.join(others)} {see}."
    near = difflib.get_close_matches(flag, known[command], n=1) if flag.startswith("--") else []
    return f"quire {command} has no flag {flag}{f'; is {near[0]} meant?' if near else ''} {see}{'' if near else '.'}"


def _flags_of(command: str) -> list[str]:
    actions = _add_flags(_Parser(), command)._actions  # argparse has no public list of them
    return [flag for action in actions for flag in action.option_strings if action.help != argparse.SUPPRESS]


def read_settings(namespace: argparse.Namespace) -> ServeArgs:
    """Flags win over the file; a model that was named wins over the one that a script proposes. Raises `ConfigError`
    for two models."""
    given = {name: value for name, value in vars(namespace).items() if name != "command"}
    default_model = given.pop("default_model", None)
    config_file = given.pop("config", None)
    if "model_argument" in given:
        argument = given.pop("model_argument")
        if given.setdefault("model", argument) != argument:
            raise ConfigError(f"MODEL {argument} and --model {given['model']} differ: give one of them.")
    settings = {}
    if config_file is not None:
        path = Path(config_file).expanduser()
        settings = read_config_file(path)
        make_args(settings, where=f"--config {path}: ")
    settings.update(given)
    settings.setdefault("model", default_model)
    return make_args(settings)


def _run_serve(namespace: argparse.Namespace) -> int:
    return serve.run(read_settings(namespace))


def _run_plan(namespace: argparse.Namespace) -> int:
    plan_args = plan.take_plan_args(namespace)
    return plan.run(read_settings(namespace), plan_args)


COMMANDS = {
    "serve": Command("serve a model over HTTP and ZeroMQ", [add_flags], _run_serve),
    "plan": Command("print what serving a model would take, and stop", [add_flags, plan.add_plan_flags], _run_plan),
    "top": Command("show a running server's cache, queue and requests", [top.add_top_flags], top.run),
}


def main(argv: Sequence[str] | None) -> int:
    """Returns the exit code. A `ConfigError` is one line on stderr and exit code 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows another one
    try:
        namespace = parse_command_line(argv)
        return COMMANDS[namespace.command].run(namespace)
    except ConfigError as error:
        # What a model's files say may stand in it, line breaks included.
        print(f"quire: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CONFIG
    except BrokenPipeError:
        # Whoever read our output has gone (`quire plan ... | head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
