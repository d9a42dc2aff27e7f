"""Turns an `AddRequest` into a `Request`, or says in one sentence why this engine cannot run it."""

import math
import time

import msgspec
import numpy as np

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.codec import ProtocolError, int32_column
from engine_core.ipc.messages import (
    ERROR_CONTEXT_LENGTH,
    ERROR_DEADLINE,
    ERROR_INVALID,
    ERROR_OVERLOADED,
    AddRequest,
)
from engine_core.ipc.sampling_params import MAX_SAMPLE_INDEX
from engine_core.open_requests import OpenRequests
from engine_core.policies.base import SchedulingPolicy
from engine_core.request import Request


class Refused(Exception):
    """A request that is not admitted; `code` is one of the error codes in `messages`."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class Admission:
    """The checks before the queue. A request's price is known here: the blocks of prompt and `max_tokens`."""

    def __init__(self, config: EngineConfig, open_requests: OpenRequests) -> None:
        self._open_requests = open_requests
        self._vocab_size = config.model.vocab_size
        self._max_model_len = config.scheduler.max_model_len
        self._capacity = config.longest_request()
        """Tokens of the longest request that context and KV cache have room for."""
        self._max_num_waiting = config.scheduler.max_num_waiting
        self._max_requests_per_share = config.scheduler.max_requests_per_share
        self._max_num_penalty_rows = config.scheduler.max_num_penalty_rows
        self._num_admitted = 0

    def admit(
        self, message: AddRequest, client: bytes, client_number: int, policy: SchedulingPolicy, now: float
    ) -> list[Request]:
        """The message's samples, in order. Raises `Refused`. `now` is monotonic seconds."""
        try:
            prompt, output = int32_column(message.prompt_token_ids), int32_column(message.output_token_ids)
        except ProtocolError as error:
            raise Refused(ERROR_INVALID, str(error)) from error
        self._check(message, prompt, output)
        self._check_samples(message, len(output))
        self._check_share(message.share_key, message.num_samples)
        if policy.is_full(message.share_key, self._max_num_waiting, message.num_samples):
            waiting = f"Too many requests are waiting ({policy.num_waiting} of all clients); try again."
            raise Refused(ERROR_OVERLOADED, waiting, retry_after=1.0)
        samples: list[Request] = []
        for index in range(message.num_samples):
            self._num_admitted += 1
            sampling = message.sampling
            if index:
                sampling = msgspec.structs.replace(sampling, sample_index=sampling.sample_index + index)
            samples.append(
                Request(
                    request_id=message.request_id,
                    client=client,
                    client_number=client_number,
                    handle=message.handle + index,
                    first_sample=samples[0] if index else None,
                    prompt_token_ids=prompt,
                    output_token_ids=output,
                    sampling=sampling,
                    max_total_tokens=self._capacity,
                    arrival_time=now,
                    arrival_number=self._num_admitted,
                    priority=message.priority,
                    share_key=message.share_key,
                    deadline=message.deadline,
                    cache_salt=message.cache_salt,
                    adapter=message.adapter,
                    trace_context=message.trace_context,
                )
            )
        return samples

    def _check_samples(self, message: AddRequest, num_output_tokens: int) -> None:
        if message.num_samples > 1 and num_output_tokens:
            raise Refused(ERROR_INVALID, "Samples resume one by one: num_samples must be 1 with output_token_ids.")
        if message.sampling.sample_index + message.num_samples > MAX_SAMPLE_INDEX + 1:
            raise Refused(ERROR_INVALID, f"The last sample's index must be at most {MAX_SAMPLE_INDEX}.")
        if message.handle + message.num_samples > 2**32:
            raise Refused(ERROR_INVALID, "The last sample's handle must be below 2^32.")

    def _check_share(self, share_key: str | None, num_new: int) -> None:
        most = self._max_requests_per_share
        if most is None or share_key is None:
            return
        if self._open_requests.num_of_share(share_key) + num_new > most:
            message = f"This API key or client would have more than {most} requests, the most at once; try again."
            raise Refused(ERROR_OVERLOADED, message, retry_after=1.0)

    def _check(self, message: AddRequest, prompt: np.ndarray, output: np.ndarray) -> None:
        if len(prompt) == 0:
            raise Refused(ERROR_INVALID, "The prompt has no tokens.")
        for tokens in (prompt, output):
            if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._vocab_size):
                raise Refused(ERROR_INVALID, f"Token ids must be from 0 to {self._vocab_size - 1}.")
        for name, ids in message.sampling.named_token_ids.items():
            if any(token >= self._vocab_size for token in ids):
                raise Refused(ERROR_INVALID, f"{name}: token ids must be from 0 to {self._vocab_size - 1}.")
        num_wanted = 1 if message.sampling.max_tokens is None else message.sampling.max_tokens
        if len(prompt) + num_wanted > self._capacity:
            holder = "context" if self._capacity == self._max_model_len else "KV cache"
            raise Refused(
                ERROR_CONTEXT_LENGTH,
                f"The prompt's {len(prompt)} tokens and the {num_wanted} asked for do not fit into the {holder}, "
                f"which holds {self._capacity}.",
            )
        if message.sampling.uses_penalties and self._max_num_penalty_rows == 0:
            raise Refused(ERROR_INVALID, "This engine was started without room for penalties.")
        if message.adapter is not None:
            raise Refused(ERROR_INVALID, f"There is no adapter {message.adapter!r}.")
        if message.deadline is not None and not math.isfinite(message.deadline):
            raise Refused(ERROR_INVALID, "The deadline must be a finite number of seconds.")
        if message.deadline is not None and message.deadline <= time.time():
            raise Refused(ERROR_DEADLINE, "The request's deadline had passed before it arrived.")
