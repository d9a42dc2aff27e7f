"""Pieces of text as chat completions, whole or in chunks."""

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from frontend.output_processor import OutputPiece, TokenLogprobs
from frontend.parsers.events import ToolCall
from frontend.prompt_logprobs import by_token_id
from frontend.protocol.chat import (
    AnswerToolCall,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    FunctionCall,
    TokenLogprob,
    TopLogprob,
)
from frontend.protocol.common import Usage
from frontend.streaming import ChunkUsage
from frontend.tokenizer import TextTokenizer


class ChatAnswer:
    """Writes the answer to one request; id, time and model are the same throughout."""

    def __init__(
        self,
        response_id: str,
        created: int,
        model: str,
        tokenizer: TextTokenizer,
        *,
        logprobs: bool,
        prompt_logprobs: int | None,
        prompt_token_ids: list[int] | None,
        is_call_forced: bool = False,
    ) -> None:
        """`prompt_token_ids`: given when the client wants to see token ids. `is_call_forced`: without a call there is
        no content."""
        self._id = response_id
        self._created = created
        self._model = model
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._prompt_logprobs = prompt_logprobs
        self._prompt_token_ids = prompt_token_ids
        self._is_call_forced = is_call_forced
        self._started: set[int] = set()

    def whole(self, pieces: list[OutputPiece], usage: Usage) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=_message(piece, self._is_call_forced),
                logprobs=self._logprobs_of(piece),
                finish_reason=piece.finish_reason or "stop",
                stop_reason=piece.stop_reason,
                token_ids=self._token_ids_of(piece),
            )
            for index, piece in enumerate(pieces)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            prompt_logprobs=(
                UNSET
                if self._prompt_logprobs is None
                else by_token_id(pieces[0].prompt_logprobs, self._prompt_logprobs, self._tokenizer)
            ),
            prompt_token_ids=UNSET if self._prompt_token_ids is None else self._prompt_token_ids,
        )

    def chunks(self, choice: int, piece: OutputPiece, usage: ChunkUsage) -> Iterator[ChatChunk]:
        """The role comes with the first output, the finish reason in a delta of its own."""
        logprobs, token_ids = self._logprobs_of(piece), self._token_ids_of(piece)
        if piece.has_output or choice not in self._started:
            first_of_all = not self._started
            delta = _delta(piece, self._is_call_forced)
            if choice not in self._started:
                delta.role = "assistant"
            self._started.add(choice)
            chunk = self._chunk(
                ChatChunkChoice(index=choice, delta=delta, logprobs=logprobs, token_ids=token_ids), usage
            )
            if first_of_all and self._prompt_token_ids is not None:
                chunk.prompt_token_ids = self._prompt_token_ids
            yield chunk
            logprobs, token_ids = None, UNSET
        if piece.finish_reason is not None:
            yield self._chunk(
                ChatChunkChoice(
                    index=choice,
                    delta=ChatDelta(),
                    logprobs=logprobs if logprobs is not None and logprobs.content else None,
                    finish_reason=piece.finish_reason,
                    stop_reason=piece.stop_reason,
                    token_ids=token_ids,
                ),
                usage,
            )

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=[], usage=usage)

    def _chunk(self, choice: ChatChunkChoice, usage: ChunkUsage) -> ChatChunk:
        return ChatChunk(id=self._id, created=self._created, model=self._model, choices=[choice], usage=usage)

    def _token_ids_of(self, piece: OutputPiece) -> list[int] | UnsetType:
        return UNSET if self._prompt_token_ids is None else piece.token_ids

    def _logprobs_of(self, piece: OutputPiece) -> ChatLogprobs | None:
        """One entry per token of the text."""
        if not self._logprobs:
            return None
        return ChatLogprobs(content=[self._entry(token) for token in piece.logprobs])

    def _entry(self, token: TokenLogprobs) -> TokenLogprob:
        tokenizer = self._tokenizer
        return TokenLogprob(
            token=tokenizer.token_text(token.token_id),
            logprob=token.logprob,
            bytes=list(tokenizer.token_bytes(token.token_id)),
            top_logprobs=[
                TopLogprob(
                    token=tokenizer.token_text(token_id), logprob=logprob, bytes=list(tokenizer.token_bytes(token_id))
                )
                for token_id, logprob in token.top
            ],
        )


def _message(piece: OutputPiece, is_call_forced: bool) -> AssistantMessage:
    """`content` is null where there is something else and no text."""
    text, reasoning = piece.text, piece.reasoning or UNSET
    return AssistantMessage(
        content=None if not text and (piece.tool_calls or piece.reasoning or is_call_forced) else text,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=[_tool_call(call) for call in piece.tool_calls] or UNSET,
    )


def _delta(piece: OutputPiece, is_call_forced: bool) -> ChatDelta:
    """Only what the piece has, and an empty text where it has nothing."""
    text, reasoning = piece.text, piece.reasoning or UNSET
    calls = [_tool_call(call) for call in piece.tool_calls]
    for answer, call in zip(calls, piece.tool_calls, strict=True):
        answer.index = call.index
    return ChatDelta(
        content=UNSET if not text and (calls or piece.reasoning or is_call_forced) else text,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls or UNSET,
    )


def _tool_call(call: ToolCall) -> AnswerToolCall:
    return AnswerToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
