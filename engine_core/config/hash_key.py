"""The key of the prefix cache's hashes, given so that replicas and routers agree on what a block is called.

Who knows the key can find out by trying whether a prompt was served before, so it belongs to one user.
"""

import os
import re
import stat
from pathlib import Path

from engine_core.config.errors import ConfigError

KEY_BYTES = 32
_KEY = re.compile(rb"[0-9a-fA-F]{%d}\s*" % (2 * KEY_BYTES))
_MAX_FILE_BYTES = 1024


def read_hash_key(file: Path) -> bytes:
    """The 32 bytes that `file` has as 64 hex digits. Raises `ConfigError` when it is not that, or not private."""
    flag = f"--prefix-hash-key-file {file}"
    try:
        # Not blocking, so that a pipe under that name is refused and not waited for.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{flag} is not a file.")
            if status.st_mode & 0o077:
                raise ConfigError(f"{flag} can be read by others than its owner; `chmod 600` would do.")
            text = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{flag} cannot be read: {error.strerror}.") from None
    if len(text) > _MAX_FILE_BYTES or _KEY.fullmatch(text) is None:
        raise ConfigError(f"{flag} must have {2 * KEY_BYTES} hex digits; `openssl rand -hex {KEY_BYTES}` makes some.")
    return bytes.fromhex(text.decode().strip())
