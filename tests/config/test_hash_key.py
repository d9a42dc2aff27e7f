"""The prefix cache's key: read when it is private and whole, and refused in one sentence otherwise."""

import os
from pathlib import Path

import pytest

from engine_core.config.errors import ConfigError
from engine_core.config.hash_key import read_hash_key

HEX = "00" * 31 + "fF"


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "key"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("text", [HEX, HEX + "\n", HEX.lower() + " \r\n"])
def test_a_private_file_with_64_digits(tmp_path: Path, text: str) -> None:
    assert read_hash_key(key_file(tmp_path, text)) == bytes(31) + b"\xff"
    assert read_hash_key(key_file(tmp_path, text, 0o400)) == bytes(31) + b"\xff"


@pytest.mark.parametrize("text", ["", HEX[1:], HEX + "0", "g" + HEX[1:], HEX + "\n" + HEX, HEX + " " * 2000, "ü" * 64])
def test_what_is_no_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"must have 64 hex digits; `openssl rand -hex 32` makes some\.$") as error:
        read_hash_key(key_file(tmp_path, text))
    assert HEX[:20] not in str(error.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_have(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=r"can be read by others than its owner; `chmod 600` would do\.$"):
        read_hash_key(key_file(tmp_path, HEX, mode))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_hash_key(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"is not a file|cannot be read"):
        read_hash_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        read_hash_key(tmp_path / "pipe")
