"""The client of an engine core for any Python program: `pip install pyzmq msgpack` is all it needs."""

from frontend.client.block_events import BlockBatch, BlockEventStream, Cleared, Removed, Stored
from frontend.client.cached_blocks import CachedBlocks
from frontend.client.deltas import EngineInfo, Finished, LogprobColumns, TokenDelta
from frontend.client.engine_client import EngineClient
from frontend.client.errors import EngineError
from frontend.client.request_stream import RequestStream, StreamGroup

__all__ = [
    "BlockBatch",
    "BlockEventStream",
    "CachedBlocks",
    "Cleared",
    "EngineClient",
    "EngineError",
    "EngineInfo",
    "Finished",
    "LogprobColumns",
    "Removed",
    "RequestStream",
    "Stored",
    "StreamGroup",
    "TokenDelta",
]
