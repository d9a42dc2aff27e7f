"""The ends of requests: whoever ends one, it leaves everything that knows it here and gets its one final reply."""

import time

from engine_core.block_events import BlockEventFeed
from engine_core.clients import Client, Clients, final_reply
from engine_core.grammar.requests import GrammarRequests
from engine_core.ipc.messages import ERROR_DEADLINE, ERROR_MASK_TIMEOUT, FINISH_ABORT, FINISH_LENGTH, RequestError
from engine_core.metrics import Metrics
from engine_core.open_requests import OpenRequests
from engine_core.request import Request, RequestStatus
from engine_core.scheduler import Scheduler
from engine_core.step_records import Finished
from engine_core.timeline import Timeline


class RequestEnds:
    """Replies are queued with the clients; the core's loop sends them."""

    def __init__(
        self,
        open_requests: OpenRequests,
        clients: Clients,
        scheduler: Scheduler,
        grammars: GrammarRequests,
        block_events: BlockEventFeed,
        metrics: Metrics,
        timeline: Timeline,
        mask_timeout: float,
    ) -> None:
        """`mask_timeout`: seconds that a request may wait for a grammar's mask."""
        self._open = open_requests
        self._clients = clients
        self._scheduler = scheduler
        self._grammars = grammars
        self._block_events = block_events
        self._metrics = metrics
        self._timeline = timeline
        self._mask_timeout = mask_timeout

    def finished(self, finished: Finished, now: float) -> None:
        """A request has left the scheduler in a step; `now` in monotonic seconds."""
        if (client := self._close(finished.request, now)) is not None:
            client.add_finished(final_reply(finished, now))

    def abort(self, request: Request, reason: str = FINISH_ABORT) -> None:
        """Ends a request wherever it is."""
        self._finish(self._take_out(request, reason))

    def abort_all(self, id_prefix: str) -> int:
        """Ends the requests whose ids begin so; their clients are told. Returns how many there were."""
        found = [request for request in self._open.all() if request.request_id.startswith(id_prefix)]
        for request in found:
            self.abort(request)
        return len(found)

    def complete(self, request: Request) -> None:
        """Ends a request that needs no step."""
        request.transition(RequestStatus.FINISHED)
        self._finish(Finished(request, FINISH_LENGTH, None, request.num_prior_tokens))

    def fail(self, request: Request, code: str, message: str) -> None:
        """Ends a request wherever it is, with an error."""
        self._take_out(request, FINISH_ABORT)
        now = time.monotonic()
        self._metrics.finished("error", request, now)
        if (client := self._close(request, now)) is not None:
            client.add_error(RequestError(handle=request.handle, code=code, message=message))

    def reply_to_all(self, code: str, message: str) -> None:
        """Answers every open request with one error. The engine does not go on, so nothing else is touched."""
        for request in self._open.all():
            if (client := self._clients.get(request.client)) is not None:
                client.add_error(RequestError(handle=request.handle, code=code, message=message))

    def fail_overdue(self) -> None:
        """Ends what has waited too long."""
        for request in self._open.expired(time.time()):
            self.fail(request, ERROR_DEADLINE, "The request's deadline has passed.")
        timeout = self._mask_timeout
        for request in self._grammars.overdue(time.monotonic() - timeout):
            self.fail(request, ERROR_MASK_TIMEOUT, f"The grammar's mask has not come for {timeout:g} s.")

    def forget(self, client: Client) -> None:
        """A client is gone: its requests are of no use to anybody."""
        self._clients.remove(client)
        self._block_events.unsubscribe(client)
        for request in list(client.requests.values()):
            self.abort(request)

    def _finish(self, finished: Finished) -> None:
        """A request ended outside a step."""
        now = time.monotonic()
        self._metrics.finished(finished.reason, finished.request, now)
        self.finished(finished, now)

    def _take_out(self, request: Request, reason: str) -> Finished:
        """The scheduler does not know a request whose grammar is being compiled."""
        if not self._grammars.is_held(request):
            return self._scheduler.abort(request, reason)
        request.transition(RequestStatus.FINISHED)
        return Finished(request, reason, None, request.num_prior_tokens)

    def _close(self, request: Request, now: float) -> Client | None:
        """Forgets an ended request; returns its client if that is still there."""
        self._open.remove(request)
        self._grammars.close(request)
        self._timeline.ended(request, now)
        if (client := self._clients.get(request.client)) is not None:
            client.requests.pop(request.handle, None)
        return client
