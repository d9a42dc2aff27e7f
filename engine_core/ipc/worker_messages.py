"""Messages on the ZeroMQ PAIR socket between an engine core and one worker: doorbells while serving, reports before.

The arrays of a step never travel here; they lie in the rings that the doorbells speak of.
"""

import msgspec


class _WorkerMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Doorbell(_WorkerMessage, frozen=True, kw_only=True, tag="bell"):
    """Sequence number `sequence` of the ring towards the receiver is complete."""

    sequence: int


class WorkerProgress(_WorkerMessage, frozen=True, kw_only=True, tag="progress"):
    """How far a stage of the start has come; `unit` is "B" for bytes or a plural noun."""

    rank: int
    stage: str
    done: int
    total: int
    unit: str = "B"


class WorkerReady(_WorkerMessage, frozen=True, kw_only=True, tag="ready"):
    """The worker waits for its first plan. Bytes as measured, to be held against the memory plan."""

    rank: int
    weight_bytes: int
    kv_cache_bytes: int
    device_free_bytes: int
    """What is left of the device; 0 where that says nothing (a CPU's memory is not ours alone)."""


class WorkerFailed(_WorkerMessage, frozen=True, kw_only=True, tag="failed"):
    """The worker cannot go on; one sentence for the user."""

    rank: int
    message: str
    exit_code: int = 1


WorkerMessage = Doorbell | WorkerProgress | WorkerReady | WorkerFailed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(WorkerMessage)


def encode_worker_message(message: WorkerMessage) -> bytes:
    return _encoder.encode(message)


def decode_worker_message(frame: bytes) -> WorkerMessage:
    """Raises `msgspec.DecodeError`: this link is between our own processes, so a bad frame is a bug."""
    return _decoder.decode(frame)
