"""Requests that come: admitted to the queue, held until their grammar is compiled, or refused in one sentence."""

import logging
import time

from engine_core.admission import Admission, Refused
from engine_core.clients import Client
from engine_core.config.engine_config import EngineConfig
from engine_core.grammar.requests import GrammarRequests
from engine_core.ipc.messages import ERROR_INVALID, ERROR_SHUTTING_DOWN, AddRequest, RequestError
from engine_core.open_requests import OpenRequests
from engine_core.request import Request
from engine_core.request_ends import RequestEnds
from engine_core.scheduler import Scheduler

logger = logging.getLogger(__name__)

_MAX_UNREAD_REPLIES = 16384
"""Final replies that may wait for a client without credit before it is dropped."""


class Arrivals:
    """Takes in `AddRequest`, whose samples are requests of their own from then on."""

    def __init__(
        self,
        config: EngineConfig,
        open_requests: OpenRequests,
        scheduler: Scheduler,
        grammars: GrammarRequests,
        ends: RequestEnds,
    ) -> None:
        self._open = open_requests
        self._scheduler = scheduler
        self._grammars = grammars
        self._ends = ends
        self._admission = Admission(config, open_requests)
        self._max_num_waiting = config.scheduler.max_num_waiting
        self.is_closed = False
        """Whether the engine takes no more requests."""

    def add(self, client: Client, message: AddRequest) -> None:
        """Admits all samples or none; a message that was sent twice changes nothing."""
        if client.num_final_replies > _MAX_UNREAD_REPLIES:
            logger.warning("A client reads none of its replies; it is dropped.")
            self._ends.forget(client)
            return
        handles = range(message.handle, message.handle + message.num_samples)
        known = self._open.get(message.request_id)
        if known is not None and known.client == client.identity and known.handle in handles:
            return  # sent twice
        try:
            if known is not None or any(handle in client.requests for handle in handles):
                raise Refused(ERROR_INVALID, f"A request {message.request_id!r} or its handle is running already.")
            samples = self._admit(client, message)
        except Refused as refused:
            code, text, retry_after = refused.code, str(refused), refused.retry_after
            for handle in handles:
                client.add_error(RequestError(handle=handle, code=code, message=text, retry_after=retry_after))
            return
        for request in samples:
            self._begin(client, request)

    def _admit(self, client: Client, message: AddRequest) -> list[Request]:
        if self.is_closed:
            raise Refused(ERROR_SHUTTING_DOWN, "The engine is shutting down.")
        if message.sampling.grammar is not None:
            self._grammars.check_room(message.share_key, self._max_num_waiting, message.num_samples)
        return self._admission.admit(message, client.identity, client.number, self._scheduler.policy, time.monotonic())

    def _begin(self, client: Client, request: Request) -> None:
        client.requests[request.handle] = request
        self._open.add(request)
        if len(request.tokens) >= request.limit and not request.wants_scores:  # as a resume that has all its tokens
            self._ends.complete(request)
        elif request.sampling.grammar is not None:
            self._grammars.hold(request)
        else:
            self._scheduler.add(request)
