"""Pieces of text as a response, whole or as events."""

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from frontend.errors import ApiError
from frontend.generation import Generation
from frontend.output_processor import OutputPiece, TokenLogprobs
from frontend.protocol import response_events as events
from frontend.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputLogprob,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    OutputTopLogprob,
    Response,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
    TextSettings,
)
from frontend.response_input import wants_logprobs
from frontend.tokenizer import TextTokenizer


class ResponseAnswer:
    """Writes the answer to one request: one message with one text."""

    def __init__(
        self,
        asked: ResponsesRequest,
        response_id: str,
        model: str,
        tokenizer: TextTokenizer,
    ) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs(asked)
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self.response = Response(
            id=response_id,
            created_at=int(time.time()),
            status="in_progress",
            background=bool(asked.background),
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=model,
            output=[],
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            previous_response_id=asked.previous_response_id,
            store=asked.store is not False,
            temperature=asked.temperature,
            text=asked.text or TextSettings(),
            tool_choice=asked.tool_choice if isinstance(asked.tool_choice, str) else "auto",
            top_logprobs=asked.top_logprobs or 0,
            top_p=asked.top_p,
            user=asked.user,
        )

    def finish(self, piece: OutputPiece, generation: Generation) -> Response:
        """The whole response, from its whole text."""
        response = self.response
        is_cut = piece.finish_reason == "length"
        response.status = "incomplete" if is_cut else "completed"
        if is_cut:
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        part = OutputText(text=piece.text, logprobs=self.logprobs(piece.logprobs))
        response.output = [OutputMessage(id=self._item_id, status=response.status, content=[part])]
        figures = generation.usage()
        cached = figures.prompt_tokens_details
        response.usage = ResponseUsage(
            input_tokens=figures.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached.cached_tokens if cached else 0),
            output_tokens=figures.completion_tokens,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=figures.total_tokens,
        )
        return response

    def fail(self, error: ApiError) -> Response:
        self.response.status = "failed"
        self.response.error = ResponseFailure(code=error.code or "server_error", message=error.message)
        return self.response

    def logprobs(self, tokens: list[TokenLogprobs]) -> list[OutputLogprob]:
        """One entry per token of the text."""
        if not self._wants_logprobs:
            return []
        text, data = self._tokenizer.token_text, self._tokenizer.token_bytes
        return [
            OutputLogprob(
                token=text(token.token_id),
                logprob=token.logprob,
                bytes=list(data(token.token_id)),
                top_logprobs=[
                    OutputTopLogprob(token=text(other), logprob=logprob, bytes=list(data(other)))
                    for other, logprob in token.top
                ],
            )
            for token in tokens
            if not token.is_hidden
        ]

    def message(self) -> OutputMessage:
        """The item before it has any text."""
        return OutputMessage(id=self._item_id, status="in_progress", content=[])


class ResponseStream:
    """The same as events; `keep` is called with the finished response before a client hears of it."""

    def __init__(
        self, answer: ResponseAnswer, generation: Generation, keep: Callable[[Response], Awaitable[None]]
    ) -> None:
        self._answer = answer
        self._generation = generation
        self._keep = keep
        self._all = OutputPiece()
        self._number = 0
        self._place: dict[str, Any] = {"item_id": answer.message().id, "output_index": 0, "content_index": 0}

    def start(self) -> Iterator[events.ResponseEvent]:
        yield events.ResponseCreated(sequence_number=self._next(), response=self._answer.response)
        yield events.ResponseInProgress(sequence_number=self._next(), response=self._answer.response)
        item = self._answer.message()
        yield events.OutputItemAdded(sequence_number=self._next(), output_index=0, item=item)
        yield events.ContentPartAdded(sequence_number=self._next(), **self._place, part=OutputText(text=""))

    def text(self, piece: OutputPiece) -> Iterator[events.ResponseEvent]:
        self._all.add(piece)
        logprobs = self._answer.logprobs(piece.logprobs)
        yield events.OutputTextDelta(sequence_number=self._next(), **self._place, delta=piece.text, logprobs=logprobs)

    async def end(self, last: OutputPiece) -> AsyncIterator[events.ResponseEvent]:
        self._all.add(last)
        response = self._answer.finish(self._all, self._generation)
        item = response.output[0]
        part = item.content[0]
        yield events.OutputTextDone(sequence_number=self._next(), **self._place, text=part.text, logprobs=part.logprobs)
        yield events.ContentPartDone(sequence_number=self._next(), **self._place, part=part)
        yield events.OutputItemDone(sequence_number=self._next(), output_index=0, item=item)
        await self._keep(response)
        kind = events.ResponseCompleted if response.status == "completed" else events.ResponseIncomplete
        yield kind(sequence_number=self._next(), response=response)

    def failure(self, error: ApiError) -> Iterator[events.ResponseEvent]:
        yield events.ResponseFailed(sequence_number=self._next(), response=self._answer.fail(error))

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number
