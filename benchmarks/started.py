"""A program that is started, says when it is ready, and is ended by a signal to its own pid: servers, mostly."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import psutil

from benchmarks.environment import ROOT, process_environment

READY = "Quire is ready: "
_STAGE = re.compile(r"^  (\S.*?)  +.* in ([0-9.]+) s(?:,|$)", re.MULTILINE)
"""A finished stage of a start, as frontend/supervisor/progress.py writes it."""


def serve_command(settings: Mapping[str, object]) -> list[str]:
    """`quire serve` with settings by name, from this source tree, whether or not the package is installed."""
    command = [sys.executable, "-P", "-m", "frontend.cli.main", "serve"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if str(value).lower() in ("true", "false"):
            command.append(f"--{flag}" if str(value).lower() == "true" else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    return command


class Started:
    """A child process that has printed its ready line. Use as a context manager, or call `stop`."""

    def __init__(
        self, command: Sequence[str], ready: str = READY, timeout: float = 300.0, env: dict[str, str] | None = None
    ) -> None:
        """Raises `RuntimeError` with what it wrote when it ends, or takes longer than `timeout` seconds."""
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the object
        self.report: list[str] = []
        """What it printed up to the ready line, which comes last."""
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            env={**process_environment(), **(env or {})},
        )
        self._read_until(ready, start + timeout)
        self.seconds_to_ready = time.perf_counter() - start

    def _read_until(self, ready: str, deadline: float) -> None:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = b""
        while not any(line.startswith(ready) for line in self.report):
            waiting = select.select([fd], [], [], max(0.0, deadline - time.perf_counter()))[0]
            piece = os.read(fd, 65536) if waiting else b""
            if not piece:
                self.stop(expected=None)
                reason = "ended before it was ready" if waiting else "was not ready in time"
                written = self.stderr()
                self._stderr.close()
                raise RuntimeError(f"{' '.join(self._process.args)} {reason}:\n{written}")  # type: ignore[arg-type]
            data += piece
            *lines, data = data.split(b"\n")
            self.report += [line.decode() for line in lines]

    @property
    def url(self) -> str:
        """A server's base URL, `http://host:port/v1`."""
        return self.report[-1].removeprefix(READY).split()[0]

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def stages(self) -> dict[str, float]:
        """Seconds of each stage that it has reported."""
        return {name: float(seconds) for name, seconds in _STAGE.findall(self.stderr())}

    def processes(self) -> dict[str, psutil.Process]:
        """All its processes by a readable name; the second one of a name has a number."""
        root = psutil.Process(self._process.pid)
        named = {"parent": root}
        for child in root.children(recursive=True):
            try:
                arguments = child.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # those that try a grammar out are short-lived
            module = arguments[arguments.index("-m") + 1] if "-m" in arguments else "other"
            number = sum(name.split(" ")[0] == module for name in named)
            named[f"{module} {number + 1}" if number else module] = child
        return named

    def resident_mib(self) -> dict[str, float]:
        """Resident memory of each process."""
        return {name: process.memory_info().rss / 2**20 for name, process in self.processes().items()}

    def stop(self, expected: int | None = 0) -> None:
        """Ends it by SIGTERM, and by SIGKILL where that takes a minute. `expected`: its exit code, None: any."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        assert expected is None or self._process.returncode == expected, self.stderr()

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.stop(expected=0 if kind is None else None)
        if error is not None:
            error.add_note(f"What was started wrote:\n{self.stderr()}")
        self._stderr.close()
