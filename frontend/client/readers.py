"""Who waits for what an engine core sends: streams of requests and block events, and calls. Frames find them here."""

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from frontend.client import wire
from frontend.client.block_events import BlockBatch, BlockEventStream
from frontend.client.errors import UTILITY_FAILED, EngineError
from frontend.client.request_stream import RequestStream


class Readers:
    """Of one client; knows nothing of its connection."""

    def __init__(self) -> None:
        # Weak, so that an iterator that its reader dropped is noticed and its request aborted.
        self.streams: WeakValueDictionary[int, RequestStream] = WeakValueDictionary()
        """By handle, those whose final reply has not arrived."""
        self.block_streams: WeakSet[BlockEventStream] = WeakSet()
        self.calls: dict[int, asyncio.Future[Any]] = {}
        self.num_delivered_tokens = 0
        self.num_finished_requests = 0
        self._next_block_batch = 0

    def add_block_stream(self) -> BlockEventStream:
        """One more; where there are others, it begins with a gap of its own."""
        stream = BlockEventStream()
        if self.block_streams:
            stream.push(BlockBatch(self._next_block_batch, gap=True))
        self.block_streams.add(stream)
        return stream

    def take(self, message: Mapping[str, Any], epoch: int | None) -> None:
        """Hands on what a frame holds; outputs of a core of another epoch count for nobody."""
        kind = message["type"]
        if kind == "outputs":
            if epoch is None or message["epoch"] == epoch:
                self._take_outputs(message)
        elif kind == "block_events":
            batch = wire.block_batch(message)
            self._next_block_batch = batch.sequence if batch.gap else batch.sequence + 1
            for stream in self.block_streams:
                stream.push(batch)
        elif kind == "utility_reply":
            self._take_reply(message)

    def fail_streams(self, error: EngineError) -> None:
        """Ends every open request's stream with that error."""
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.fail(error)

    def fail_all(self, error: EngineError) -> None:
        """Nothing will come any more."""
        self.fail_streams(error)
        for block_stream in self.block_streams:
            block_stream.fail(error)
        self.block_streams.clear()
        for call in self.calls.values():
            if not call.done():
                call.set_exception(error)

    def _take_outputs(self, message: Mapping[str, Any]) -> None:
        streams = self.streams
        for row in message.get("prompt_logprobs", ()):
            handle, columns = wire.prompt_logprobs(row)
            stream = streams.get(handle)
            if stream is not None:
                stream.push_prompt_logprobs(columns)
        for handle, num_cached_tokens, *_ in message.get("started", ()):
            stream = streams.get(handle)
            if stream is not None:
                stream.start(num_cached_tokens)
        for handle, token_ids, logprobs in wire.new_tokens(message):
            stream = streams.get(handle)
            if stream is not None:
                self.num_delivered_tokens += len(token_ids)
                if logprobs is not None:
                    stream.push_logprobs(logprobs)
                stream.push_tokens(token_ids)
        for row in message.get("finished", ()):
            handle, finished = wire.finished(row)
            stream = streams.pop(handle, None)
            if stream is not None:
                self.num_finished_requests += 1
                stream.finish(finished)
        for handle, code, text, *rest in message.get("errors", ()):
            stream = streams.pop(handle, None)
            if stream is not None:
                self.num_finished_requests += 1
                stream.fail(EngineError(code, text, rest[0] if rest else None))

    def _take_reply(self, message: Mapping[str, Any]) -> None:
        call = self.calls.get(message["call_id"])
        if call is None or call.done():
            return
        error = message.get("error")
        if error is None:
            call.set_result(message.get("result"))
        else:
            call.set_exception(EngineError(UTILITY_FAILED, error))
