"""Whether the process that writes a response still runs: it holds the lock of a file, which the kernel gives back."""

import contextlib
import fcntl
import os
import secrets


class WriterLock:
    """The lock of this process. Its file's path is its name for all processes of this machine."""

    def __init__(self, folder: str) -> None:
        self.path = f"{os.path.abspath(folder)}/writer-{secrets.token_hex(8)}.lock"
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self._fd)


def is_held(path: str) -> bool:
    """Whether the process that made this lock still runs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
