"""The wire format as plain msgpack maps: what `docs/protocol.md` describes, without any type of the engine.

Columns of numbers are raw little-endian 4-byte values; on a big-endian machine they are swapped on the way.
"""

import itertools
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]

from frontend.client.block_events import BlockBatch, Cleared, Removed, Stored
from frontend.client.deltas import EngineInfo, Finished, LogprobColumns

PROTOCOL_VERSION = 2
MAX_SAMPLES = 1024
MAX_FRAME_BYTES = 32 * 2**20
DIGEST_BYTES = 16

_SWAP = sys.byteorder == "big"
TokenIds = Sequence[int] | bytes


def pack(message: Mapping[str, Any]) -> bytes:
    """One message as one frame."""
    return msgpack.packb(message)


def unpack(frame: bytes) -> dict[str, Any]:
    """One frame as its map."""
    return msgpack.unpackb(frame, raw=False, strict_map_key=False)


def int32_bytes(values: TokenIds) -> bytes:
    """Token ids as they travel. Bytes are taken as already in that form."""
    if isinstance(values, bytes):
        return values
    column = values if isinstance(values, array) and values.typecode == "i" else array("i", values)
    if _SWAP:
        column = array("i", column)
        column.byteswap()
    return column.tobytes()


def int32_column(data: bytes) -> "array[int]":
    return _column("i", data)


def hello(credit: int) -> bytes:
    return pack({"type": "hello", "version": PROTOCOL_VERSION, "credit": credit})


def credit(amount: int, num_replies: int = 0) -> bytes:
    return pack({"type": "credit", "amount": amount, "num_replies": num_replies})


def abort(handles: Sequence[int], reason: str = "abort") -> bytes:
    """`reason`: `abort` or `stop`."""
    message = {"type": "abort", "handles": list(handles)}
    return pack(message if reason == "abort" else {**message, "reason": reason})


def bye() -> bytes:
    return pack({"type": "bye"})


def add_request(
    request_id: str,
    handle: int,
    num_samples: int,
    prompt_token_ids: bytes,
    sampling: Mapping[str, Any],
    optional: Mapping[str, Any],
) -> bytes:
    """Starts a request; optional fields that are None, empty or 0 are left out."""
    message = {
        "type": "add",
        "request_id": request_id,
        "handle": handle,
        "prompt_token_ids": prompt_token_ids,
        "sampling": dict(sampling),
    }
    if num_samples > 1:
        message["num_samples"] = num_samples
    message.update((name, value) for name, value in optional.items() if value not in (None, b"", 0))
    return pack(message)


def utility(call_id: int, method: str, arguments: Mapping[str, Any]) -> bytes:
    return pack({"type": "utility", "call_id": call_id, "method": method, "arguments": dict(arguments)})


def subscribe_block_events() -> bytes:
    return pack({"type": "subscribe_block_events"})


def block_batch(message: Mapping[str, Any]) -> BlockBatch:
    """One `BlockEvents`; a newer core may append fields to its events, and send events of other kinds."""
    changes: list[Stored | Removed | Cleared] = []
    for kind, *fields in message.get("events", ()):
        if kind == "stored":
            changes.append(Stored(digests(fields[0]), *fields[1:4]))
        elif kind == "removed":
            changes.append(Removed(digests(fields[0]), fields[1]))
        elif kind == "cleared":
            changes.append(Cleared())
    return BlockBatch(message["sequence"], message.get("gap", False), changes)


def digests(column: bytes) -> list[bytes]:
    """Hashes of blocks, one after the other."""
    return [column[start : start + DIGEST_BYTES] for start in range(0, len(column), DIGEST_BYTES)]


def welcome(message: Mapping[str, Any]) -> EngineInfo:
    return EngineInfo(
        version=message["version"],
        epoch=message["epoch"],
        replica=message["replica"],
        max_model_len=message["max_model_len"],
        vocab_size=message["vocab_size"],
        num_kv_tokens=message["num_kv_tokens"],
    )


def new_tokens(message: Mapping[str, Any]) -> Iterator[tuple[int, "array[int]", LogprobColumns | None]]:
    """The new tokens of each request in a `RequestOutputs`, by handle, and their log-probabilities where wanted."""
    handles = _column("I", message.get("handles", b""))
    counts = _column("i", message.get("num_tokens", b""))
    token_ids = _column("i", message.get("token_ids", b""))
    logprobs = _token_logprobs(message, counts) if message.get("num_tops") else itertools.repeat(None)
    start = 0
    for handle, count, columns in zip(handles, counts, logprobs, strict=False):
        end = start + count
        yield handle, token_ids[start:end], columns
        start = end


def _token_logprobs(message: Mapping[str, Any], counts: "array[int]") -> Iterator[LogprobColumns | None]:
    """Of the new tokens of each request."""
    logprobs, ranks = _column("f", message["logprobs"]), _column("i", message["ranks"])
    top_ids = _column("i", message.get("top_token_ids", b""))
    top_logprobs = _column("f", message.get("top_logprobs", b""))
    start = top_start = 0
    for count, num_top in zip(counts, _column("i", message["num_tops"]), strict=True):
        if num_top < 0:
            yield None
            continue
        end, top_end = start + count, top_start + count * num_top
        tops = slice(top_start, top_end)
        yield LogprobColumns(num_top, logprobs[start:end], ranks[start:end], top_ids[tops], top_logprobs[tops])
        start, top_start = end, top_end


def prompt_logprobs(row: Sequence[Any]) -> tuple[int, LogprobColumns]:
    """One entry of `prompt_logprobs` in a `RequestOutputs`: its handle and columns; a newer core may append fields."""
    handle, _num_tokens, num_top, logprobs, ranks, top_token_ids, top_logprobs = row[:7]
    return handle, LogprobColumns(
        num_top=num_top,
        logprobs=_column("f", logprobs),
        ranks=_column("i", ranks),
        top_token_ids=_column("i", top_token_ids),
        top_logprobs=_column("f", top_logprobs),
    )


def finished(row: Sequence[Any]) -> tuple[int, Finished]:
    """One entry of `finished` in a `RequestOutputs`; a newer core may append fields."""
    return row[0], Finished(*row[1:10])


def _column(typecode: str, data: bytes) -> array:
    column = array(typecode)
    column.frombytes(data)
    if _SWAP:
        column.byteswap()
    return column
