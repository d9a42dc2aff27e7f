"""One HTTP request's choices while the engine works on them: from prompts to pieces of text. Knows no protocol."""

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine_core.ipc.messages import ERROR_SHUTTING_DOWN, FINISH_ABORT, FINISH_STOP
from frontend.beams.search import BeamParams
from frontend.client import EngineClient, EngineError, RequestStream, StreamGroup
from frontend.errors import from_engine, unavailable
from frontend.input_processor import Prompt
from frontend.output_processor import OutputOptions, OutputPiece, OutputProcessor
from frontend.protocol.common import Usage, usage
from frontend.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Order:
    """What a request wants: `num_samples` choices for each prompt, sampled with the parameters beside it."""

    response_id: str
    prompts: Sequence[Prompt]
    samplings: Sequence[dict[str, Any]]
    num_samples: int
    options: OutputOptions
    priority: int = 0
    share_key: str | None = None
    cache_salt: str | None = None
    trace_context: str | None = None
    beams: Sequence[BeamParams] = ()
    """Instead of being sampled, each prompt's answers are searched for like this."""
    grammar_param: str | None = None
    """The field to blame where the engine refuses the request's grammar."""


class Generation:
    """Iterates over (choice, piece); choices are numbered prompt by prompt. Close it whatever happens."""

    def __init__(self, order: Order, tokenizer: TextTokenizer, client: EngineClient) -> None:
        self.order = order
        self._processors: list[OutputProcessor] = []
        streams: list[RequestStream] = []
        try:
            for prompt, sampling in zip(order.prompts, order.samplings, strict=True):
                streams += _start(order, len(streams), prompt, sampling, client)
                self._processors += [
                    OutputProcessor(tokenizer, prompt.token_ids, order.options) for _ in range(order.num_samples)
                ]
        except EngineError as error:
            for stream in streams:
                stream.close()
            raise from_engine(error, self.order.grammar_param) from error
        self._group = StreamGroup(streams)

    @property
    def num_choices(self) -> int:
        return len(self._processors)

    def __aiter__(self) -> AsyncIterator[tuple[int, OutputPiece]]:
        return self

    async def __anext__(self) -> tuple[int, OutputPiece]:
        """Raises the `ApiError` that a failed request is answered with."""
        try:
            choice, delta = await anext(self._group)
        except EngineError as error:
            raise from_engine(error, self.order.grammar_param) from error
        piece = self._processors[choice].push(delta)
        if piece.finish_reason == FINISH_ABORT:
            # We do not read on after our own aborts, so this one is the engine's.
            raise unavailable("The engine ended the request.", ERROR_SHUTTING_DOWN)
        if piece.finish_reason is not None:
            self._group.close_one(choice, FINISH_STOP)
        return choice, piece

    async def collect(self) -> list[OutputPiece]:
        """All choices, complete."""
        pieces = [OutputPiece() for _ in self._processors]
        async for choice, piece in self:
            pieces[choice].add(piece)
        return pieces

    def hands_on_to(self, is_held_up: Callable[[], bool]) -> None:
        """Bounds what waits while `is_held_up` says that the client does not read."""
        self._group.hands_on_to(is_held_up)

    def usage(self) -> Usage:
        """The tokens so far: each prompt once, and all that was generated."""
        processors = self._processors
        firsts = processors[:: self.order.num_samples]
        cached = [first.num_cached_tokens for first in firsts]
        return usage(
            num_prompt_tokens=sum(first.num_prompt_tokens for first in firsts),
            num_output_tokens=sum(processor.num_output_tokens for processor in processors),
            num_reasoning_tokens=(
                None
                if processors[0].num_reasoning_tokens is None
                else sum(processor.num_reasoning_tokens or 0 for processor in processors)
            ),
            num_cached_tokens=None if None in cached else sum(number or 0 for number in cached),
        )

    def close(self) -> None:
        """Aborts in the engine whatever still runs."""
        self._group.close()


def _start(
    order: Order, choice: int, prompt: Prompt, sampling: dict[str, Any], client: EngineClient
) -> list[RequestStream]:
    # The engine takes a second request of the same id for a repetition of the first, and clients choose ids as they
    # like: a part of ours makes them unique.
    return client.generate_samples(
        prompt.token_ids,
        sampling,
        order.num_samples,
        request_id=f"{order.response_id}-{choice}-{uuid.uuid4().hex[:12]}",
        priority=order.priority,
        share_key=order.share_key,
        cache_salt=order.cache_salt,
        trace_context=order.trace_context,
    )
