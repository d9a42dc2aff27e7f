"""What lies in a checkpoint, from the headers of its safetensors files alone: no weight is read, nothing is allocated.

A file is 8 bytes of header length, the header (a JSON object: name -> dtype, shape, offsets), then the data. Everything
here is checked before a worker maps the file, so that a damaged download is one sentence and no crash in mid-start.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from engine_core.config.errors import ConfigError
from engine_core.config.model_config import read_json_object

MAX_HEADER_BYTES = 100 * 2**20
"""The format's own limit."""
MAX_INDEX_BYTES = 100 * 2**20
_MAX_DIMS = 16
_MAX_FILE_NAME = 255
_COMPARED_AT_ONCE = 4 * 2**20

STORED_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
CONVERTED = ("F16", "BF16", "F32", "F64")  # loaded at the serving dtype, whatever they are stored as


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor as its header describes it."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    file: str
    begin: int
    """Where its bytes stand: from there on in that file."""

    def bytes_at(self, dtype_bytes: int) -> int:
        """Its size once loaded to be served at a dtype of that many bytes."""
        return math.prod(self.shape) * dtype_bytes if self.dtype in CONVERTED else self.num_bytes


def read_checkpoint(path: Path) -> dict[str, TensorInfo]:
    """All tensors of the model folder `path`. Raises `ConfigError` when a file is missing or damaged, or when two files
    hold a tensor of the same name."""
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        header = read_header(file)
        twice = next(iter(tensors.keys() & header.keys()), None)
        if twice is not None:
            raise ConfigError(f"{file}: {twice[:200]!r} is there a second time; {tensors[twice].file} has it too.")
        tensors.update(header)
    return tensors


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder: the whole one where there is one, as in transformers, or those that the
    index names, or all there are."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(path, index)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{path} has no weights: there is no *.safetensors file in it.")
    return files


def hold_the_same(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors are the same bytes; reads them up to the first difference."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open(first.file, "rb") as one, open(second.file, "rb") as other:
        one.seek(first.begin)
        other.seek(second.begin)
        left = first.num_bytes
        while left:
            size = min(left, _COMPARED_AT_ONCE)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True


def _indexed_files(path: Path, index: Path) -> list[Path]:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ConfigError(f"{index} is larger than an index can be ({MAX_INDEX_BYTES} bytes).")
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConfigError(f"{index} has no `weight_map` of tensor names to file names.")
    names = sorted(set(weight_map.values()))
    for name in names:
        # A name is data from outside: it must not lead out of the model's folder.
        too_long = len(name.encode(errors="replace")) > _MAX_FILE_NAME
        if Path(name).name != name or too_long or not name.endswith(".safetensors"):
            raise ConfigError(f"{index} names {name[:200]!r}, which is not a safetensors file of that folder.")
        if not (path / name).exists():
            raise ConfigError(
                f"{index} names {name}, which is missing; that file would do, or no index if others have the weights."
            )
    return [path / name for name in names]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file. Raises `ConfigError` when the header is not one or does not fit the file's size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ConfigError(f"{file} is not a complete safetensors file: its header is cut off or damaged.")
            text = stream.read(length)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ConfigError(f"{file} is not a safetensors file: its header is not JSON.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} is not a safetensors file: its header is not a JSON object.")
    raw.pop("__metadata__", None)
    return _check_layout(file, raw, 8 + length, size)


def _check_layout(file: Path, raw: Mapping[str, Any], data_begin: int, size: int) -> dict[str, TensorInfo]:
    """The tensors cover the data from its first to its last byte without holes, as the format demands."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in raw.items():
        dtype, shape, begin, end = _parse_entry(file, name, entry)
        if end - begin != -(-math.prod(shape) * STORED_BITS[dtype] // 8):
            raise ConfigError(f"{file} is damaged: the size of {name[:200]!r} does not fit its shape.")
        tensors[name] = TensorInfo(dtype, shape, end - begin, str(file), data_begin + begin)
        spans.append((begin, end))
    position, data_bytes = 0, size - data_begin
    for begin, end in sorted(spans):
        if begin != position:
            raise ConfigError(f"{file} is damaged: its tensors overlap or leave holes.")
        position = end
    if position != data_bytes:
        raise ConfigError(
            f"{file} is {'truncated' if data_bytes < position else 'damaged'}: "
            f"its header promises {position} bytes of data and {data_bytes} are there."
        )
    return tensors


def _parse_entry(file: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    damaged = ConfigError(f"{file} is damaged: the header's entry for {name[:200]!r} is malformed.")
    if not isinstance(entry, dict):
        raise damaged
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise damaged
    if len(shape) > _MAX_DIMS:
        raise damaged
    if dtype not in STORED_BITS:
        raise ConfigError(f"{file} holds {name[:200]!r} as {dtype[:40]!r}, a dtype that is not known.")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**60 for item in value)
