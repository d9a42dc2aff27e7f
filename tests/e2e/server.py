"""A real server, started as a user would start it, and what is left of it afterwards."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import openai

DEMO_MODEL = Path(__file__).parents[2] / "demo_model"
QUIRE = Path(sys.executable).parent / "quire"
_READY = re.compile(r"Quire is ready: (http://127\.0\.0\.1:\d+)/v1 \(model (.+), [0-9.]+ s\)")


class Server:
    """`quire serve` on a free port, with a temporary folder of its own so that every trace of it can be found."""

    def __init__(self, *arguments: str, model: Path = DEMO_MODEL, temp: Path | None = None) -> None:
        self.temp = temp or Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
        self._shared_memory = set(os.listdir("/dev/shm"))
        self._stderr: IO[str] = (self.temp / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [str(QUIRE), "serve", str(model), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temp)},
        )
        self.report: list[str] = []
        self.url = ""
        self.model = ""

    def wait_until_ready(self) -> "Server":
        """Reads what it prints up to the line with the URL."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.report.append(line)
            if match := _READY.fullmatch(line.strip()):
                self.url, self.model = match.groups()
                return self
        raise AssertionError(f"The server did not come up: {self.errors()}")

    def client(self) -> openai.OpenAI:
        """A client that shows every failure instead of trying again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def processes(self, module: str = "") -> list[int]:
        """The children that run now: all, or those of one module. Their command lines name the run directory."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if any(word.startswith(f"{self.temp}/quire-") for word in words) and (not module or module in words):
                found.append(int(folder.name))
        return sorted(found)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def errors(self) -> list[str]:
        """What it wrote to stderr."""
        self._stderr.flush()
        self._stderr.seek(0)
        return self._stderr.read().splitlines()

    def complaints(self) -> list[str]:
        """Of that the supervisor's own sentences."""
        return [line for line in self.errors() if line.startswith("quire: ")]

    def assert_nothing_left(self, run_dir: bool = False) -> None:
        """No process, no socket, no shared memory; no run directory either unless `run_dir` says so."""
        assert self.processes() == []
        assert set(os.listdir("/dev/shm")) <= self._shared_memory
        if not run_dir:
            assert sorted(path.name for path in self.temp.iterdir()) == ["stderr.txt"]
            assert str(self.temp) not in Path("/proc/net/unix").read_text()

    def close(self) -> None:
        """Stops it in any case."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()

    def remove(self) -> None:
        """Removes what belongs to the test and not to the server."""
        shutil.rmtree(self.temp, ignore_errors=True)


def wait_for_end(pids: list[int], timeout: float = 30.0) -> None:
    """Until none of these processes (which need not be our children) runs any more."""
    deadline = time.monotonic() + timeout
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ended, f"Process {pid} still runs: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
        finally:
            os.close(pidfd)
