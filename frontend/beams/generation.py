"""Beam search over the engine: a request for one token of each beam in each round. Knows no protocol.

The engine needs nothing of its own for it: the beams of a prompt share its full blocks through the prefix cache, and
what differs between them is computed again with the last, partial block.
"""

import asyncio
import uuid
from array import array
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from engine_core.ipc import messages
from frontend.beams.search import Beam, BeamParams, BeamSearch, FinishedBeam, NextTokens
from frontend.client import EngineClient, EngineError, Finished, LogprobColumns, RequestStream, StreamGroup, TokenDelta
from frontend.client.deltas import int32_array
from frontend.errors import from_engine, unavailable
from frontend.generation import Order
from frontend.output_processor import OutputPiece, OutputProcessor
from frontend.protocol.common import Usage, usage
from frontend.tokenizer import TextTokenizer

T = TypeVar("T")


class BeamAborted(Exception):
    """The engine ended a request of its own accord."""


async def search_beams(
    client: EngineClient,
    prompt: Sequence[int],
    params: BeamParams,
    *,
    num_top: int = 0,
    priority: int = 0,
    share_key: str | None = None,
    cache_salt: str | None = None,
) -> tuple[list[FinishedBeam], Finished]:
    """The best beams, best first, and the engine's figures of the first round. `num_top`: alternatives that are wanted
    to each token. Raises `EngineError`, `BeamAborted`."""
    search, first = BeamSearch(params), None
    name = uuid.uuid4().hex
    num_logprobs = max(params.num_candidates, num_top)
    sampling = {"max_tokens": 1, "temperature": 0.0, "logprobs": num_logprobs, "ignore_eos": True}
    while not search.done:
        streams: list[RequestStream] = []
        try:
            for index, beam in enumerate(search.running):
                streams.append(
                    client.generate(
                        array("i", [*prompt, *beam.token_ids]),
                        sampling,
                        request_id=f"beam-{name}-{len(beam.token_ids)}-{index}",
                        priority=priority,
                        share_key=share_key,
                        cache_salt=cache_salt,
                    )
                )
            following, figures = await _read_all(streams)
        finally:
            for stream in streams:
                stream.close()
        first = first or figures
        search.advance(following)
    assert first is not None
    return search.finished, first


async def search_many(
    client: EngineClient, prompts: Sequence[Sequence[int]], params: BeamParams, window: int
) -> list[list[FinishedBeam]]:
    """The best beams of each prompt; at most `window` prompts are searched at a time. Raises `EngineError`."""
    turn = asyncio.Semaphore(window)

    async def search(prompt: Sequence[int]) -> list[FinishedBeam]:
        async with turn:
            try:
                return (await search_beams(client, prompt, params))[0]
            except BeamAborted:
                raise EngineError(messages.ERROR_SHUTTING_DOWN, "The engine ended the request.") from None

    return await _all([search(prompt) for prompt in prompts])


async def _all(searches: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first failure ends the other searches."""
    tasks = [asyncio.ensure_future(search) for search in searches]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _read_all(streams: list[RequestStream]) -> tuple[list[NextTokens], Finished]:
    """What may follow each beam, and the figures of the first one."""
    following: dict[int, NextTokens] = {}
    figures: dict[int, Finished] = {}
    async for index, delta in StreamGroup(streams):
        if delta.logprobs is not None:
            following[index] = NextTokens(delta.logprobs.top_token_ids, delta.logprobs.top_logprobs)
        if delta.finished is not None:
            if delta.finished.reason == messages.FINISH_ABORT:
                raise BeamAborted
            figures[index] = delta.finished
    return [following[index] for index in range(len(streams))], figures[0]


def as_delta(finished: FinishedBeam, figures: Finished, num_top: int | None) -> TokenDelta:
    """A beam as if the engine had generated it; `num_top` alternatives to each of its tokens, None: no logprobs."""
    beam, stops = finished.beam, finished.reason == messages.FINISH_STOP
    end = Finished(
        reason=finished.reason,
        stop_token_id=beam.token_ids[-1] if stops else None,
        num_prompt_tokens=figures.num_prompt_tokens,
        num_cached_tokens=figures.num_cached_tokens,
        num_output_tokens=len(beam.token_ids),
        num_preemptions=figures.num_preemptions,
        queue_time=figures.queue_time,
        prefill_time=figures.prefill_time,
        decode_time=0.0,
    )
    logprobs = None if num_top is None else _columns(beam, num_top)
    return TokenDelta(int32_array(beam.token_ids), logprobs, end, num_cached_tokens=end.num_cached_tokens)


def _columns(beam: Beam, num_top: int) -> LogprobColumns:
    columns = LogprobColumns(num_top)
    for rank, among in beam.choices:
        columns.logprobs.append(among.logprobs[rank - 1])
        columns.ranks.append(rank)
        columns.top_token_ids.extend(among.token_ids[:num_top])
        columns.top_logprobs.extend(among.logprobs[:num_top])
    return columns


class BeamGeneration:
    """One HTTP request's answers by beam search: those of each prompt best first, `num_answers` of them."""

    def __init__(self, order: Order, num_answers: int, tokenizer: TextTokenizer, client: EngineClient) -> None:
        """Of the order's sampling parameters only `logprobs` counts."""
        self._order = order
        self._num_answers = num_answers
        self._tokenizer = tokenizer
        self._client = client
        self._usage = usage(0, 0)

    async def collect(self) -> list[OutputPiece]:
        """All answers. Raises the `ApiError` that a failed request is answered with."""
        answers = await _all([self._answer(index) for index in range(len(self._order.prompts))])
        processors = [processor for answer in answers for _, processor in answer]
        reasoning = [processor.num_reasoning_tokens for processor in processors]
        self._usage = usage(
            num_prompt_tokens=sum(len(prompt.token_ids) for prompt in self._order.prompts),
            num_output_tokens=sum(processor.num_output_tokens for processor in processors),
            num_cached_tokens=sum(answer[0][1].num_cached_tokens or 0 for answer in answers),
            num_reasoning_tokens=None if None in reasoning else sum(count or 0 for count in reasoning),
        )
        return [piece for answer in answers for piece, _ in answer]

    def usage(self) -> Usage:
        return self._usage

    def close(self) -> None:
        """Nothing outlives `collect`, which ends its requests when it is cancelled."""

    async def _answer(self, index: int) -> list[tuple[OutputPiece, OutputProcessor]]:
        order = self._order
        prompt, sampling = order.prompts[index], order.samplings[index]
        num_top = sampling.get("logprobs")
        try:
            beams, figures = await search_beams(
                self._client,
                prompt.token_ids,
                order.beams[index],
                num_top=num_top or 0,
                priority=order.priority,
                share_key=order.share_key,
                cache_salt=order.cache_salt,
            )
        except EngineError as error:
            raise from_engine(error) from error
        except BeamAborted as error:
            raise unavailable("The engine ended the request.", messages.ERROR_SHUTTING_DOWN) from error
        answers = []
        for beam in beams[: self._num_answers]:
            processor = OutputProcessor(self._tokenizer, prompt.token_ids, order.options)
            answers.append((processor.push(as_delta(beam, figures, num_top)), processor))
        return answers
