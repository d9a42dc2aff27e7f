"""Pieces of text as an Anthropic message, whole or as events."""

from collections.abc import AsyncIterator, Iterator

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece
from frontend.protocol import messages
from frontend.protocol.messages import Message, MessageUsage, StopReason, TextBlock


class MessageAnswer:
    """Writes the answer to one request: one block of text."""

    def __init__(self, message_id: str, model: str, generation: Generation) -> None:
        self._id = message_id
        self._model = model
        self._generation = generation

    def whole(self, piece: OutputPiece) -> Message:
        return self._message([TextBlock(text=piece.text)], *_stop_of(piece))

    def start(self) -> Iterator[messages.MessageEvent]:
        yield messages.MessageStart(message=self._message([], None, None))
        yield messages.ContentBlockStart(index=0, content_block=TextBlock(text=""))

    def text(self, piece: OutputPiece) -> Iterator[messages.MessageEvent]:
        yield messages.ContentBlockDelta(index=0, delta=messages.TextDelta(text=piece.text))

    async def end(self, last: OutputPiece) -> AsyncIterator[messages.MessageEvent]:
        stop_reason, stop_sequence = _stop_of(last)
        yield messages.ContentBlockStop(index=0)
        delta = messages.StopDelta(stop_reason=stop_reason, stop_sequence=stop_sequence)
        yield messages.MessageDelta(delta=delta, usage=self._usage())
        yield messages.MessageStop()

    def failure(self, error: ApiError) -> Iterator[messages.MessageEvent]:
        detail = error.anthropic_body()["error"]
        yield messages.MessagesError(error=messages.MessagesErrorDetail(**detail))

    def _message(self, content: list[TextBlock], stop_reason: StopReason | None, stop_sequence: str | None) -> Message:
        return Message(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=self._usage(),
        )

    def _usage(self) -> MessageUsage:
        """So far: what came from the cache is known at the end."""
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
    if isinstance(piece.stop_reason, str):
        return "stop_sequence", piece.stop_reason
    return ("max_tokens" if piece.finish_reason == "length" else "end_turn"), None
