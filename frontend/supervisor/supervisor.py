"""The parent of all processes: starts engine cores and frontends, watches them, and leaves nothing behind.

It loads neither torch nor Sanic nor ZeroMQ, handles no request, and sleeps until a signal, a message or a death; while
it serves it also looks at the heartbeats every few seconds. Each of its three phases (starting, serving, stopping) is
one loop over the watcher's events.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

import msgspec

from engine_core.ipc.control import Progress
from engine_core.ipc.heartbeat import Heartbeats, core_line, grammar_line, worker_line
from frontend.cli.report import format_measured
from frontend.cli.resolve import Resolved
from frontend.launcher import Child, start_core, start_frontend
from frontend.responses.database import claim
from frontend.supervisor.hangs import Hang, HangWatch, Watched
from frontend.supervisor.listeners import open_listeners, url_of
from frontend.supervisor.orphans import adopt_orphans, kill_children, reap_orphans
from frontend.supervisor.progress import ProgressDisplay
from frontend.supervisor.run_dir import RunDir, remove_stale_run_dirs
from frontend.supervisor.watcher import Ended, Event, Reported, Signalled, TimedOut, Watcher

ERROR_DELIVERY_SECONDS = 5.0
"""After a death, how long frontends may take to tell their clients."""
GRACE_SECONDS = 10.0
"""How long a process may take beyond what it was given, before it is killed."""


class Verdict(msgspec.Struct, frozen=True):
    """Why we stop, and what the program ends with."""

    exit_code: int
    drain_timeout: float
    message: str | None = None


class Supervisor:
    """Use as a context manager: whatever happens inside, its exit leaves no process, socket or file."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._cores: list[Child] = []
        self._frontends: list[Child] = []
        self._listeners: list[socket.socket] = []
        self._watched: list[Watched] = []
        self._by_line: dict[int, Child] = {}
        self._run_dir: RunDir | None = None
        self._store_fd = -1
        self._progress = ProgressDisplay()

    def __enter__(self) -> "Supervisor":
        """Takes what a start needs. Raises `ConfigError` when the address, a folder or a file cannot be had."""
        frontend = self._resolved.frontend
        self._watcher = Watcher()
        try:
            adopt_orphans()
            remove_stale_run_dirs()
            self._listeners = open_listeners(frontend.host, frontend.port, frontend.num_frontends)
            self._port: int = self._listeners[0].getsockname()[1]
            self._run_dir = RunDir()
            config = self._resolved.serve_config(self._run_dir.path, self._port)
            self._store_fd = claim(config.response_store)
            self._run_dir.write_config(config)
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean_up()

    def run(self) -> int:
        """Starts, serves, stops. Returns the program's exit code."""
        verdict = self._start() or self._serve()
        if verdict.message is not None:
            print(f"quire: {verdict.message}", file=sys.stderr, flush=True)
        return self._stop(verdict)

    # Starting

    def _start(self) -> Verdict | None:
        """None once everybody is ready."""
        self._start_children()
        while not all(child.is_ready for child in self._children):
            event = self._watcher.wait()
            if isinstance(event, Reported) and isinstance(event.message, Progress):
                self._progress.update(event.message)
            elif verdict := _verdict_on(event, drain_timeout=None):
                self._progress.close()
                return verdict
        self._progress.close()
        self._announce()
        return None

    def _start_children(self) -> None:
        """Cores first: their workers have the longest way to go, and frontends load meanwhile."""
        assert self._run_dir is not None
        config_file = self._run_dir.config_file
        parallel = self._resolved.engine.parallel
        first_frontend = core_line(parallel.data_parallel_size, parallel.world_size)
        self._heartbeats = heartbeats = Heartbeats.create(first_frontend + len(self._listeners))
        for replica in range(parallel.data_parallel_size):
            line = core_line(replica, parallel.world_size)
            child = start_core(config_file, replica, heartbeats, line)
            self._watch(self._cores, child, Watched(f"Engine core {replica}", line))
            # Before the workers, which wait for it.
            name = f"The grammar process of replica {replica}"
            self._watched.append(Watched(name, grammar_line(line, parallel.world_size), line, "engine_core.grammar"))
            for rank in range(parallel.world_size):
                name = f"Worker {rank} of replica {replica}"
                self._watched.append(Watched(name, worker_line(line, rank), line, "gpu_workers"))
        for number, listener in enumerate(self._listeners):
            line = first_frontend + number
            child = start_frontend(config_file, number, listener.fileno(), heartbeats, line)
            self._watch(self._frontends, child, Watched(f"Frontend {number}", line))

    def _watch(self, group: list[Child], child: Child, watched: Watched) -> None:
        group.append(child)
        self._watcher.add(child)
        self._watched.append(watched)
        self._by_line[watched.index] = child

    def _announce(self) -> None:
        plan, ready = self._resolved.plan, self._cores[0].ready
        assert ready is not None
        if free_bytes := int(ready.details["device_free_bytes"]):
            print(format_measured(plan, free_bytes), file=sys.stderr, flush=True)
        frontend = self._resolved.frontend
        url = url_of(frontend.host, self._port)
        name = frontend.served_model_names[0]
        print(f"Quire is ready: {url}/v1 (model {name}, {_process_age():.1f} s)", flush=True)

    # Serving

    def _serve(self) -> Verdict:
        """Until somebody asks us to stop, or a process dies or hangs."""
        frontend = self._resolved.frontend
        watch, look_at = None, None
        if frontend.hang_timeout > 0:
            now = time.monotonic()
            watch = HangWatch(self._heartbeats, self._watched, frontend.hang_timeout, now)
            look_at = now + watch.interval
        while True:
            event = self._watcher.wait(look_at)
            if verdict := _verdict_on(event, frontend.drain_timeout):
                return verdict
            if watch is not None and isinstance(event, TimedOut):
                now = time.monotonic()
                look_at = now + watch.interval
                if hang := watch.look(now):
                    return self._end_hanging(hang)

    def _end_hanging(self, hang: Hang) -> Verdict:
        """Kills what hangs (it would not hear anything else), so that the others see a death, which they know."""
        process = hang.process
        if process.core is None:
            self._by_line[process.index].kill()
        else:  # of a group that waits for one worker none is of use, and the core is to hear of nobody else's death
            kill_children(self._by_line[process.core].pid, process.module)
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - hang.seconds))
        message = f"{process.name} hangs: no sign of life since {since}, for {hang.seconds:.0f} s."
        return Verdict(1, ERROR_DELIVERY_SECONDS, message)

    # Stopping

    def _stop(self, verdict: Verdict) -> int:
        """Frontends finish what runs, then the cores go: nobody's answer is cut off by our order of stopping."""
        self._exit_code = verdict.exit_code
        if all(child.is_ready for child in self._children):  # else nobody was served yet
            drained_by = time.monotonic() + verdict.drain_timeout
            for group in (self._frontends, self._cores):  # the cores have other clients than our frontends
                timeout = max(0.0, drained_by - time.monotonic())
                for child in group:
                    child.drain(timeout)
                if not self._wait_for_end(group, time.monotonic() + timeout + GRACE_SECONDS):
                    break
        self._kill_all()
        return self._exit_code

    def _wait_for_end(self, group: list[Child], deadline: float) -> bool:
        """Waits until all of `group` have ended and kills who is late. False: we were asked again, and hurry."""
        while any(child.is_alive for child in group):
            event = self._watcher.wait(deadline)
            if isinstance(event, Signalled):
                self._exit_code = 128 + event.number
                return False
            if isinstance(event, TimedOut):
                for child in filter(lambda child: child.is_alive, group):
                    self._complain(f"The {child.name} did not stop in time.")
                    child.kill()
                deadline = time.monotonic() + GRACE_SECONDS
            elif isinstance(event, Ended) and event.child.exit_code != 0 and self._exit_code == 0:
                self._complain(event.child.describe_end())
        return True

    def _complain(self, message: str) -> None:
        """Something went wrong while stopping: one line, and the exit code says so too."""
        self._exit_code = self._exit_code or 1
        print(f"quire: {message}", file=sys.stderr, flush=True)

    @property
    def _children(self) -> list[Child]:
        return self._cores + self._frontends

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.reap()

    def _clean_up(self) -> None:
        self._progress.close()
        self._kill_all()
        reap_orphans(GRACE_SECONDS)
        for listener in self._listeners:
            listener.close()
        if self._store_fd >= 0:
            os.close(self._store_fd)
        if self._run_dir is not None:
            self._run_dir.remove()
        self._watcher.close()


def _verdict_on(event: Event, drain_timeout: float | None) -> Verdict | None:
    """Whether an event means the end: a signal is an orderly one, a failure or a death is not.

    `drain_timeout` is None during the start, when there is nothing to finish.
    """
    if isinstance(event, Signalled):
        name = signal.Signals(event.number).name
        if drain_timeout is None:
            return Verdict(0, 0.0, f"Stopped by {name} during the start.")
        return Verdict(0, drain_timeout, f"{name}: finishing what runs, for up to {drain_timeout:g} s.")
    if isinstance(event, Ended):
        failed = event.child.failed
        return Verdict(failed.exit_code if failed else 1, ERROR_DELIVERY_SECONDS, event.child.describe_end())
    return None


def _process_age() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
