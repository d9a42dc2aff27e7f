"""Frames to typed messages and back. The decoders are closed: an unknown tag, field or type is a `ProtocolError`."""

import msgspec
import numpy as np

from engine_core.ipc.messages import MAX_SAMPLES, ClientMessage, CoreMessage


class ProtocolError(ValueError):
    """A frame is not one of the messages that this side accepts."""


_encoder = msgspec.msgpack.Encoder()
_client_decoder = msgspec.msgpack.Decoder(ClientMessage)
_core_decoder = msgspec.msgpack.Decoder(CoreMessage)


def encode(message: msgspec.Struct) -> bytes:
    """One message as one frame."""
    return _encoder.encode(message)


def decode_client_message(frame: bytes | memoryview) -> ClientMessage:
    """What a client sent. Raises `ProtocolError` with the reason."""
    try:
        return _client_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(str(error)) from error


def handles_of_malformed_add(frame: bytes | memoryview) -> range:
    """The handles in a frame that meant to be an `AddRequest`, so that its sender can be told; empty: not found."""
    try:
        plain = msgspec.msgpack.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return range(0)
    if not isinstance(plain, dict) or plain.get("type") != "add":
        return range(0)
    handle, count = plain.get("handle"), plain.get("num_samples", 1)
    if not isinstance(handle, int) or not 0 <= handle < 2**32:
        return range(0)
    return range(handle, handle + (count if isinstance(count, int) and 1 <= count <= MAX_SAMPLES else 1))


def decode_core_message(frame: bytes | memoryview) -> CoreMessage:
    """What an engine core sent. Raises `ProtocolError` with the reason."""
    try:
        return _core_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(str(error)) from error


def int32_column(data: bytes) -> np.ndarray:
    """Raw little-endian int32 as an array [len(data) / 4]. Raises `ProtocolError` when bytes are left over."""
    if len(data) % 4:
        raise ProtocolError(f"A column of int32 has {len(data)} bytes, which is not a multiple of 4.")
    return np.frombuffer(data, dtype="<i4")
