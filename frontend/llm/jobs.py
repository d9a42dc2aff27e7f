"""Many answers at once: each is a request to the engine, and all have one reader."""

import math
import sys
from array import array
from collections import deque
from typing import Any

from engine_core.ipc.messages import FINISH_STOP
from frontend.client import Finished
from frontend.client.request_stream import Inbox, RequestStream
from frontend.llm.local_engine import LocalEngine
from frontend.llm.outputs import RequestOutput
from frontend.llm.sampling_params import SamplingParams
from frontend.output_processor import OutputOptions, OutputPiece, OutputProcessor
from frontend.prompt_logprobs import by_token_id
from frontend.tokenizer import TextTokenizer


class Job:
    """One answer under way."""

    def __init__(
        self,
        output: RequestOutput,
        index: int,
        params: SamplingParams,
        sampling: dict[str, Any],
        tokenizer: TextTokenizer,
        cache_salt: str | None,
    ) -> None:
        self.output = output
        """`sampling`: what the engine is told of `params`."""
        self.cache_salt = cache_salt
        self.index = index
        self.params = params
        self.sampling = sampling
        self.tokenizer = tokenizer
        options = OutputOptions(
            stop_strings=params.stop_strings,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            stop_token_ids=frozenset(params.stop_token_ids),
            skip_special_tokens=params.skip_special_tokens,
        )
        self.processor = OutputProcessor(tokenizer, output.prompt_token_ids, options)
        self.piece = OutputPiece()

    def finish(self, metrics: Finished | None) -> None:
        """The answer is complete."""
        done, piece = self.output.outputs[self.index], self.piece
        done.text, done.token_ids = piece.text, piece.token_ids
        done.finish_reason, done.stop_reason = piece.finish_reason, piece.stop_reason
        done.logprobs = piece.logprobs if self.params.logprobs is not None else None
        self.output.metrics = metrics or self.output.metrics
        self.output.num_cached_tokens = self.processor.num_cached_tokens or 0
        num_top = self.params.prompt_logprobs
        if num_top is not None and self.index == 0:
            self.output.prompt_logprobs = by_token_id(piece.prompt_logprobs, num_top, self.tokenizer)


async def run_jobs(engine: LocalEngine, jobs: list[Job], window: int, use_tqdm: bool) -> None:
    """At most `window` at a time; one reader for all of them, so that a step of many rows wakes it once."""
    inbox = Inbox(max_unread_bytes=math.inf)  # the reader is this program, which wants all of it
    waiting = deque(jobs)
    running: dict[int, tuple[Job, RequestStream]] = {}
    with _progress_bar(len(jobs), use_tqdm) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < window:
                    samples = _take_samples(waiting, window - len(running))
                    for job, stream in zip(samples, _start(samples, engine), strict=True):
                        stream.move_to(inbox)
                        running[stream.handle] = job, stream
                await inbox.wait()
                while inbox.ready:
                    stream = inbox.ready.popleft()
                    if stream.closed:
                        continue
                    delta = stream.take()
                    job = running[stream.handle][0]
                    job.piece.add(job.processor.push(delta))
                    if job.processor.finished:
                        job.finish(delta.finished)
                        stream.close(FINISH_STOP)
                        del running[stream.handle]
                        bar.update()
        finally:
            for _, stream in running.values():
                stream.close()


def _take_samples(waiting: deque[Job], most: int) -> list[Job]:
    """The next answers to one prompt."""
    samples = [waiting.popleft()]
    while waiting and len(samples) < most and waiting[0].output is samples[0].output:
        samples.append(waiting.popleft())
    return samples


def _start(samples: list[Job], engine: LocalEngine) -> list[RequestStream]:
    first = samples[0]
    return engine.client.generate_samples(
        array("i", first.output.prompt_token_ids),
        {**first.sampling, "sample_index": first.params.sample_index + first.index},
        len(samples),
        request_id=f"{first.output.request_id}-{first.index}",
        cache_salt=first.cache_salt,
    )


def _progress_bar(total: int, use_tqdm: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="Generating", unit=" answers", disable=not use_tqdm, file=sys.stderr)
