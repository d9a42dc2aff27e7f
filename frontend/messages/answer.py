"""Pieces of output as an Anthropic message, whole or as events."""

from collections.abc import AsyncIterator, Iterator

import msgspec

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import FINISH_TOOL_CALLS, OutputPiece, runs_of
from frontend.parsers.events import Reasoning, ToolCall
from frontend.protocol import messages
from frontend.protocol.messages import (
    Block,
    Message,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)


class MessageAnswer:
    """Writes the answer to one request, block by block."""

    def __init__(self, message_id: str, model: str, generation: Generation) -> None:
        self._id = message_id
        self._model = model
        self._generation = generation
        self._num_blocks = 0
        self._open: type[TextBlock] | type[ThinkingBlock] | None = None
        """The last block, as long as it grows."""

    def whole(self, piece: OutputPiece) -> Message:
        blocks: list[Block] = []
        for part in runs_of(piece):
            if isinstance(part, ToolCall):
                blocks.append(ToolUseBlock(id=part.id, name=part.name, input=msgspec.Raw(part.arguments.encode())))
            elif isinstance(part, Reasoning):
                blocks.append(ThinkingBlock(thinking=part.text))
            elif text := part.text.lstrip() if blocks else part.text:
                blocks.append(TextBlock(text=text))
        return self._message(blocks, *_stop_of(piece))

    def start(self) -> Iterator[messages.MessageEvent]:
        yield messages.MessageStart(message=self._message([], None, None))

    def output(self, piece: OutputPiece) -> Iterator[messages.MessageEvent]:
        for part in runs_of(piece):
            if isinstance(part, ToolCall):
                yield from self._tool_use(part)
            elif isinstance(part, Reasoning):
                yield from self._grow(ThinkingBlock(thinking=""), messages.ThinkingDelta(thinking=part.text))
            else:
                # What parts a block from the one before it is not part of it.
                is_later = self._num_blocks > 0 and self._open is not TextBlock
                if text := part.text.lstrip() if is_later else part.text:
                    yield from self._grow(TextBlock(text=""), messages.TextDelta(text=text))

    async def end(self, last: OutputPiece) -> AsyncIterator[messages.MessageEvent]:
        stop_reason, stop_sequence = _stop_of(last)
        for event in self._close():
            yield event
        delta = messages.StopDelta(stop_reason=stop_reason, stop_sequence=stop_sequence)
        yield messages.MessageDelta(delta=delta, usage=self._usage())
        yield messages.MessageStop()

    def failure(self, error: ApiError) -> Iterator[messages.MessageEvent]:
        detail = error.anthropic_body()["error"]
        yield messages.MessagesError(error=messages.MessagesErrorDetail(**detail))

    def _grow(
        self, block: TextBlock | ThinkingBlock, delta: messages.TextDelta | messages.ThinkingDelta
    ) -> Iterator[messages.MessageEvent]:
        """`block`: what is begun unless the last one goes on."""
        if self._open is not type(block):
            yield from self._close()
            yield self._begin(block)
        yield messages.ContentBlockDelta(index=self._num_blocks - 1, delta=delta)

    def _tool_use(self, call: ToolCall) -> Iterator[messages.MessageEvent]:
        """A call is there at once: its input is one delta."""
        yield from self._close()
        yield self._begin(ToolUseBlock(id=call.id, name=call.name, input=msgspec.Raw(b"{}")))
        delta = messages.InputJsonDelta(partial_json=call.arguments)
        yield messages.ContentBlockDelta(index=self._num_blocks - 1, delta=delta)
        yield messages.ContentBlockStop(index=self._num_blocks - 1)

    def _begin(self, block: Block) -> messages.MessageEvent:
        self._open = None if isinstance(block, ToolUseBlock) else type(block)
        self._num_blocks += 1
        return messages.ContentBlockStart(index=self._num_blocks - 1, content_block=block)

    def _close(self) -> Iterator[messages.MessageEvent]:
        if self._open is not None:
            self._open = None
            yield messages.ContentBlockStop(index=self._num_blocks - 1)

    def _message(self, content: list[Block], stop_reason: StopReason | None, stop_sequence: str | None) -> Message:
        return Message(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=self._usage(),
        )

    def _usage(self) -> MessageUsage:
        """So far: what came from the cache is known from the first token on."""
        figures = self._generation.usage()
        details = figures.prompt_tokens_details
        num_cached = details.cached_tokens if details else 0
        return MessageUsage(
            input_tokens=figures.prompt_tokens - num_cached,
            output_tokens=figures.completion_tokens,
            cache_read_input_tokens=num_cached,
        )


def _stop_of(piece: OutputPiece) -> tuple[StopReason, str | None]:
    """Why it ended, and the stop sequence that ended it."""
    if piece.finish_reason == FINISH_TOOL_CALLS:
        return "tool_use", None
    if isinstance(piece.stop_reason, str):
        return "stop_sequence", piece.stop_reason
    return ("max_tokens" if piece.finish_reason == "length" else "end_turn"), None
