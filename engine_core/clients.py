"""The clients of an engine core: what waits for each, and how many frames each may still be sent.

ROUTER drops silently at its high-water mark, so the core counts credits and never gets there. While a client has no
credit its tokens wait here as columns, a few bytes each, and leave together in the next frame. Their bytes are bounded:
the requests of a client that lets too many wait end with an error. Replies to utilities are sent at once, and a client
that does not say that it reads them is dropped.
"""

import errno
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import zmq

from engine_core.config.engine_config import EngineConfig
from engine_core.ipc.codec import ProtocolError, encode, handles_of_malformed_add
from engine_core.ipc.messages import (
    ERROR_INVALID,
    ERROR_READER_TOO_SLOW,
    PROTOCOL_VERSION,
    Credit,
    FinishedRequest,
    PromptLogprobs,
    RequestError,
    RequestOutputs,
    StartedRequest,
    UtilityReply,
    Welcome,
)
from engine_core.ipc.step import StepResult, of_tokens
from engine_core.request import Request
from engine_core.row_table import RowTable
from engine_core.step_records import Finished, ScoredTokens, StepOutputs

logger = logging.getLogger(__name__)

MAX_UNREAD_BYTES = 256 * 2**20
"""Of tokens and log-probabilities that may wait for one client."""
MAX_UNREAD_REPLY_BYTES = 64 * 2**20
"""Of answers to utilities that were sent to one client and that it has not said to have read."""
TOO_SLOW = "The client did not take its outputs: too many were waiting for it."


class TokenLogprobs(NamedTuple):
    """Log-probabilities of tokens, as columns under the names that they have in a `RequestOutputs`."""

    logprobs: np.ndarray
    ranks: np.ndarray
    top_token_ids: np.ndarray
    top_logprobs: np.ndarray


class Client:
    """One connected client."""

    def __init__(self, identity: bytes, number: int, credit: int) -> None:
        self.identity = identity
        self.number = number
        self.credit = credit
        self.requests: dict[int, Request] = {}
        """By handle; ended ones are gone."""
        self._handles: list[np.ndarray] = []
        self._num_tokens: list[np.ndarray] = []
        self._token_ids: list[np.ndarray] = []
        self._num_tops: list[np.ndarray] = []
        self._started: list[StartedRequest] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[PromptLogprobs] = []
        self._finished: list[FinishedRequest] = []
        self._errors: list[RequestError] = []
        self.num_unread_bytes = 0
        """Of tokens and log-probabilities."""
        self._reply_bytes: deque[int] = deque()
        """Of each answer to a utility that it has not said to have read."""
        self._num_reply_bytes = 0

    @property
    def num_final_replies(self) -> int:
        """Final replies that wait for credit."""
        return len(self._finished) + len(self._errors)

    @property
    def has_outputs(self) -> bool:
        return bool(self._handles or self._prompt_logprobs or self._finished or self._errors)

    def add_tokens(self, handles: np.ndarray, counts: np.ndarray, token_ids: np.ndarray, num_tops: np.ndarray) -> None:
        """`counts` tokens each, and how many alternatives are wanted beside them; -1: no log-probabilities at all."""
        self._handles.append(handles)
        self._num_tokens.append(counts)
        self._token_ids.append(token_ids)
        self._num_tops.append(num_tops)
        self.num_unread_bytes += handles.nbytes + counts.nbytes + token_ids.nbytes + num_tops.nbytes

    def add_started(self, request: Request) -> None:
        """Its first token has been added."""
        started = StartedRequest(handle=request.handle, num_cached_tokens=request.num_cached_tokens)
        self._started.append(started)

    def add_logprobs(self, logprobs: TokenLogprobs) -> None:
        """Of the tokens that were added last and want them, in the same order."""
        self._logprobs.append(logprobs)
        self.num_unread_bytes += sum(column.nbytes for column in logprobs)

    def add_prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self._prompt_logprobs.append(logprobs)
        self.num_unread_bytes += 2 * (len(logprobs.logprobs) + len(logprobs.top_logprobs))

    def add_finished(self, finished: FinishedRequest) -> None:
        self._finished.append(finished)

    def add_error(self, error: RequestError) -> None:
        self._errors.append(error)

    def grant(self, credit: Credit) -> None:
        self.credit += credit.amount
        for _ in range(min(credit.num_replies, len(self._reply_bytes))):
            self._num_reply_bytes -= self._reply_bytes.popleft()

    def send_reply(self, socket: zmq.Socket, reply: UtilityReply) -> bool:
        """Whether it was sent. Else the client has left, or reads no replies."""
        if self._num_reply_bytes > MAX_UNREAD_REPLY_BYTES:
            logger.warning("A client reads none of the replies to its utilities; it is dropped.")
            return False
        frame = encode(reply)
        self._reply_bytes.append(len(frame))
        self._num_reply_bytes += len(frame)
        return send_to(socket, self.identity, frame)

    def drop_outputs(self) -> None:
        """What waits is lost: its requests that have ended end with an error instead."""
        self._drop_columns()
        handles, self._finished = [finished.handle for finished in self._finished], []
        self._errors += [RequestError(handle=h, code=ERROR_READER_TOO_SLOW, message=TOO_SLOW) for h in handles]

    def take_frame(self, epoch: int, replica: int, step: int) -> bytes:
        """All that waits, as one frame."""
        columns = [_joined(parts) for parts in zip(*self._logprobs, strict=True)] or [b""] * len(TokenLogprobs._fields)
        frame = encode(
            RequestOutputs(
                epoch=epoch,
                replica=replica,
                step=step,
                handles=_joined(self._handles),
                num_tokens=_joined(self._num_tokens),
                token_ids=_joined(self._token_ids),
                num_tops=_joined(self._num_tops) if self._logprobs else b"",
                **dict(zip(TokenLogprobs._fields, columns, strict=True)),
                started=self._started,
                prompt_logprobs=self._prompt_logprobs,
                finished=self._finished,
                errors=self._errors,
            )
        )
        self._drop_columns()
        self._finished, self._errors = [], []
        return frame

    def _drop_columns(self) -> None:
        self._handles, self._num_tokens, self._token_ids, self._num_tops = [], [], [], []
        self._started, self._logprobs, self._prompt_logprobs = [], [], []
        self.num_unread_bytes = 0


class Clients:
    """All clients by identity; numbers name them in the row table."""

    def __init__(self, epoch: int, replica: int) -> None:
        self._epoch = epoch
        self._replica = replica
        self._by_identity: dict[bytes, Client] = {}
        self._by_number: dict[int, Client] = {}
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._by_identity)

    def get(self, identity: bytes) -> Client | None:
        return self._by_identity.get(identity)

    def add(self, identity: bytes, credit: int) -> Client:
        client = Client(identity, self._next_number, credit)
        self._by_identity[identity] = self._by_number[client.number] = client
        self._next_number += 1
        return client

    def remove(self, client: Client) -> None:
        del self._by_identity[client.identity]
        del self._by_number[client.number]

    def add_step(self, outputs: StepOutputs, result: StepResult, table: RowTable) -> None:
        """Sorts a step's tokens by client."""
        numbers, handles = table.client_number[outputs.rows], table.handle[outputs.rows]
        num_tops, counts = table.num_logprobs[outputs.rows], outputs.counts
        is_one = bool((numbers == numbers[:1]).all())  # most often: then nothing has to be sorted
        for number in numbers[:1].tolist() if is_one else np.unique(numbers).tolist():
            client = self._by_number.get(number)
            if client is None:
                continue  # it vanished; its requests are being aborted
            is_mine = numbers == number
            mine = slice(None) if is_one else is_mine
            token_ids = outputs.token_ids if is_one else outputs.token_ids[np.repeat(is_mine, counts)]
            client.add_tokens(handles[mine], counts[mine], token_ids, num_tops[mine])
            wanted = np.flatnonzero(num_tops[mine] >= 0)
            if len(wanted):
                columns = (column[mine][wanted] for column in (outputs.indices, counts, num_tops))
                client.add_logprobs(_logprobs_of(result, *columns))
        for row in outputs.rows[outputs.is_first].tolist():
            request = table.requests[row]  # none where it has ended with that token
            client = None if request is None else self._by_number.get(request.client_number)
            if client is not None:
                client.add_started(request)
        for part in outputs.scored:
            client = self._by_number.get(part.request.client_number)
            if client is not None:
                client.add_prompt_logprobs(_scores_of(result, part))

    def take_overfull(self) -> list[Request]:
        """The open requests of clients for which too much waits. What waits is dropped."""
        overfull = [client for client in self._by_identity.values() if client.num_unread_bytes > MAX_UNREAD_BYTES]
        for client in overfull:
            client.drop_outputs()
        return [request for client in overfull for request in client.requests.values()]

    def send(self, socket: zmq.Socket, step: int) -> list[Client]:
        """Sends one frame to each client that has outputs and credit. Returns clients found to be gone."""
        ready = [client for client in self._by_identity.values() if client.has_outputs]
        return self._send_frames(socket, step, ready)

    def probe_idle(self, socket: zmq.Socket, step: int) -> list[Client]:
        """Sends an empty frame to each client without requests, for that is how ROUTER tells who left without a bye.

        Returns the clients found to be gone.
        """
        return self._send_frames(socket, step, [c for c in self._by_identity.values() if not c.requests])

    def _send_frames(self, socket: zmq.Socket, step: int, clients: list[Client]) -> list[Client]:
        gone = []
        for client in clients:
            if client.credit > 0:
                client.credit -= 1
                frame = client.take_frame(self._epoch, self._replica, step)
                if not send_to(socket, client.identity, frame):
                    gone.append(client)
        return gone


def send_to(socket: zmq.Socket, identity: bytes, frame: bytes) -> bool:
    """Sends to one peer of a ROUTER; False when it is not connected any more."""
    try:
        socket.send_multipart([identity, frame], zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
            return False  # EAGAIN: its queue is full although credits bound it, so it is no honest client
        raise
    return True


def refuse_malformed(client: Client | None, frame: bytes, error: ProtocolError) -> None:
    """Whoever waits for an answer to a request gets one; other frames are only logged."""
    handles = handles_of_malformed_add(frame)
    if client is not None and handles and not any(handle in client.requests for handle in handles):
        message = f"The request is malformed: {error}."
        for handle in handles:
            client.add_error(RequestError(handle=handle, code=ERROR_INVALID, message=message))
    else:
        logger.warning("A client sent a malformed frame: %s", error)


def final_reply(finished: Finished, now: float) -> FinishedRequest:
    """What a client is told of a request that has just left the scheduler; `now` in monotonic seconds."""
    request = finished.request
    scheduled, first = request.scheduled_time or now, request.first_token_time or now
    return FinishedRequest(
        handle=request.handle,
        reason=finished.reason,
        stop_token_id=finished.stop_token_id,
        num_prompt_tokens=request.num_prompt_tokens,
        num_cached_tokens=request.num_cached_tokens,
        num_output_tokens=finished.num_output_tokens,
        num_preemptions=request.num_preemptions,
        queue_time=scheduled - request.arrival_time,
        prefill_time=first - scheduled,
        decode_time=now - first,
    )


def _joined(columns: Sequence[np.ndarray]) -> bytes:
    return b"".join([column.tobytes() for column in columns])


def _logprobs_of(result: StepResult, indices: np.ndarray, counts: np.ndarray, num_tops: np.ndarray) -> TokenLogprobs:
    """Of the first `counts` tokens of each of the step's rows `indices`, with `num_tops` alternatives; all [n]."""
    most = int(num_tops.max())
    logprobs, ranks, top_ids, top_logprobs = (
        of_tokens(column, indices, counts)
        for column in (
            result.logprobs,
            result.ranks,
            result.top_token_ids[:, :, :most],
            result.top_logprobs[:, :, :most],
        )
    )
    if (num_tops < most).any():
        is_wanted = np.arange(most) < np.repeat(num_tops, counts)[:, None]
        top_ids, top_logprobs = top_ids[is_wanted], top_logprobs[is_wanted]
    return TokenLogprobs(logprobs, ranks, top_ids, top_logprobs)


def _scores_of(result: StepResult, part: ScoredTokens) -> PromptLogprobs:
    """Log-probabilities of tokens of a prompt."""
    num_top = part.request.sampling.prompt_logprobs or 0
    scores = result.scores[part.offset : part.offset + part.count]
    return PromptLogprobs(
        handle=part.request.handle,
        num_tokens=part.count,
        num_top=num_top,
        logprobs=scores["logprob"].tobytes(),
        ranks=scores["rank"].tobytes(),
        top_token_ids=scores["top_token_ids"][:, :num_top].tobytes(),
        top_logprobs=scores["top_logprobs"][:, :num_top].tobytes(),
    )


def make_welcome(config: EngineConfig, epoch: int, replica: int) -> Welcome:
    """What a client is told first."""
    cache = config.cache
    return Welcome(
        version=PROTOCOL_VERSION,
        epoch=epoch,
        replica=replica,
        max_model_len=config.scheduler.max_model_len,
        vocab_size=config.model.vocab_size,
        num_kv_tokens=cache.num_blocks * cache.block_size // len(config.layer_groups()),
    )
