"""The client of an engine core for any Python program: `pip install pyzmq msgpack` is all it needs."""

from frontend.client.deltas import EngineInfo, Finished, LogprobColumns, TokenDelta
from frontend.client.engine_client import EngineClient
from frontend.client.errors import EngineError
from frontend.client.request_stream import RequestStream, StreamGroup

__all__ = [
    "EngineClient",
    "EngineError",
    "EngineInfo",
    "Finished",
    "LogprobColumns",
    "RequestStream",
    "StreamGroup",
    "TokenDelta",
]
