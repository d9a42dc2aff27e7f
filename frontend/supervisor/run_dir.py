"""The run directory: a private folder with config.json and the ipc sockets of one running Quire.

Whoever holds it keeps it locked, so that a later start can tell a directory in use from one whose owner was killed, and
removes only the latter.
"""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

import msgspec

from engine_core.config.engine_config import ServeConfig
from engine_core.config.errors import ConfigError

PREFIX = "quire-"
_UNLOCKED = "new-quire-"
MAX_SOCKET_PATH = 100
"""A unix socket's path has 108 bytes on Linux."""
LEFTOVER_SECONDS = 60.0
"""A directory gets its lock and its final name within milliseconds; one that did not in so long never will."""
_LONGEST_SOCKET_NAME = len("/worker-000-000.sock")


class RunDir:
    """Made on construction, mode 0700; `remove` it in the end."""

    def __init__(self) -> None:
        unlocked = _make_dir()
        self._lock_fd = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        # Only now it gets the name under which others look for stale ones.
        self.path = unlocked.replace(_UNLOCKED, PREFIX)
        os.rename(unlocked, self.path)

    @property
    def config_file(self) -> str:
        return f"{self.path}/config.json"

    def write_config(self, config: ServeConfig) -> None:
        """What the child processes read."""
        with open(os.open(self.config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(config)))

    def remove(self) -> None:
        """Removes it with everything inside. May be called twice."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1


def _folders() -> list[str]:
    """Where run directories are made: the second one where the first one's path is too long."""
    return list(dict.fromkeys((tempfile.gettempdir(), "/tmp")))


def _make_dir() -> str:
    for folder in _folders():
        if not os.path.isdir(folder):
            continue
        path = tempfile.mkdtemp(prefix=f"{_UNLOCKED}{os.getpid()}-", dir=folder)
        if len(os.fsencode(path)) + _LONGEST_SOCKET_NAME < MAX_SOCKET_PATH:
            return path
        os.rmdir(path)
    raise ConfigError(f"The path of the temporary folder {tempfile.gettempdir()} is too long for sockets; set TMPDIR.")


def remove_stale_run_dirs() -> None:
    """Removes this user's run directories whose owner is gone (it was killed and could not clean up)."""
    for folder in map(Path, _folders()):
        for path in folder.glob(f"{PREFIX}[0-9]*-*"):
            _remove_if_stale(path, min_age=0.0)
        for path in folder.glob(f"{_UNLOCKED}[0-9]*-*"):
            _remove_if_stale(path, min_age=LEFTOVER_SECONDS)


def running_run_dirs() -> list[Path]:
    """This user's run directories whose owner runs, the oldest first."""
    found = []
    for folder in map(Path, _folders()):
        for path in folder.glob(f"{PREFIX}[0-9]*-*"):
            fd = _open(path)
            if fd is None:
                continue
            try:
                status = os.fstat(fd)
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if status.st_uid == os.getuid():
                    found.append((status.st_ctime, path))
            finally:
                os.close(fd)
    return [path for _, path in sorted(found)]


def _open(path: Path) -> int | None:
    """None: gone meanwhile, or somebody else's."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


def _remove_if_stale(path: Path, min_age: float) -> None:
    fd = _open(path)
    if fd is None:
        return
    try:
        status = os.fstat(fd)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime >= min_age:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:  # in use
        pass
    finally:
        os.close(fd)
