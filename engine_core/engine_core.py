"""The engine core's loop: receive, collect, update, schedule, dispatch, send. It owns the sockets and the clock.

Up to `steps_in_flight` steps are under way: while the workers run step N, step N+1 is planned and queued behind it. The
time from a result to the plan that it makes room for is what bounds the rate of short steps; so clients get their
tokens after that plan has gone.
"""

import logging
import time
from collections import deque

import zmq

from engine_core.arrivals import Arrivals
from engine_core.block_events import BlockEventFeed
from engine_core.clients import TOO_SLOW, Clients, make_welcome, refuse_malformed, send_to
from engine_core.config.engine_config import EngineConfig
from engine_core.executors.base import Executor
from engine_core.grammar.requests import GrammarLink, GrammarRequests
from engine_core.idle_check import IdleCheck
from engine_core.inspector import Inspector
from engine_core.ipc.codec import ProtocolError, decode_client_message, encode
from engine_core.ipc.control import ControlLink, Drain, LinkClosed
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.messages import (
    ERROR_READER_TOO_SLOW,
    PROTOCOL_VERSION,
    AbortRequest,
    AddRequest,
    Bye,
    Credit,
    Hello,
    SubscribeBlockEvents,
)
from engine_core.ipc.step import ENDED_NS, STARTED_NS, StepResult, StepShape
from engine_core.kv_cache_manager import make_kv_cache_manager
from engine_core.metrics import Metrics
from engine_core.open_requests import OpenRequests
from engine_core.request_ends import RequestEnds
from engine_core.scheduler import Scheduler
from engine_core.step_pacing import StepPacing
from engine_core.step_records import ScheduledStep
from engine_core.timeline import Timeline
from engine_core.utilities import answer
from engine_core.work_report import WorkReport

logger = logging.getLogger(__name__)

_IDLE_POLL_MS = 1000
"""The longest sleep; deadlines are looked at after it."""
_MAX_FRAMES_A_TURN = 256
"""More frames wait for the next turn, so that no flood of them keeps clients from their tokens."""
_FEW_FRAMES = 16
"""So many are taken in, some 0.5 ms, before a step that could be planned is."""
_MANY_CLIENTS = 32
"""From so many clients on, each new one is the occasion to look for those that left without a word."""


class EngineCore:
    """One replica's engine. `run` returns when it was drained; the executor is started and stopped by the caller."""

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        router: zmq.Socket,
        link: ControlLink,
        heartbeats: Heartbeats,
        heartbeat_index: int,
        replica: int = 0,
        model_name: str = "",
        grammar_link: GrammarLink | None = None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._router = router
        self._link = link
        self._heartbeats = heartbeats
        self._heartbeat_index = heartbeat_index
        self._replica = replica
        kv_cache_manager = make_kv_cache_manager(config)
        shape = StepShape(**config.step_capacities())
        self.scheduler = Scheduler(
            config.scheduler, kv_cache_manager, config.model.eos_token_ids, shape.num_speculative_tokens
        )
        self.grammars = GrammarRequests(grammar_link, self.scheduler.table)
        self.metrics = Metrics(self.scheduler, model_name or config.model.path, replica)
        self.inspector = Inspector(self.scheduler, replica, time.monotonic())
        self.timeline = Timeline()
        self.num_collected = 0
        # Blocks that come back from the host are on their way while the step before runs.
        self._pacing = StepPacing(config.scheduler, may_hold=kv_cache_manager.host is None)
        self.epoch = time.time_ns()
        self._clients = Clients(self.epoch, replica)
        self._block_events = BlockEventFeed(kv_cache_manager.events, self.epoch, replica)
        self._open = OpenRequests()
        self.ends = RequestEnds(
            self._open,
            self._clients,
            self.scheduler,
            self.grammars,
            self._block_events,
            self.metrics,
            self.timeline,
            config.scheduler.mask_timeout,
        )
        self._arrivals = Arrivals(config, self._open, self.scheduler, self.grammars, self.ends)
        self._inflight: deque[ScheduledStep] = deque()
        self._may_hash = False
        """Whether prompts wait whose blocks are not hashed yet."""
        self._stop_at: float | None = None  # set by Drain: monotonic seconds
        self._idle_check = IdleCheck(kv_cache_manager.pool)
        self.work = WorkReport(self.scheduler.table)
        self._poller = zmq.Poller()
        self._poller.register(router, zmq.POLLIN)
        self._poller.register(link.fileno(), zmq.POLLIN)
        executor.register(self._poller)
        if self.grammars.link is not None:
            self._poller.register(self.grammars.link.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Serves until drained. Raises `ExecutorFailed` when a worker dies, `LinkClosed` when the parent does."""
        while not self._is_drained():
            self.work.begin("receiving")
            self._receive()
            while (result := self._executor.next_result()) is not None:
                self._update(result)
            while (step := self._schedule()) is not None:
                self._dispatch(step)
            self.work.begin("sending")
            self._send()
            self._may_hash = self.scheduler.hash_ahead()

    def fail_all(self, code: str, message: str) -> None:
        """Answers every open request with one error: the engine does not go on, so nothing else is touched."""
        self.ends.reply_to_all(code, message)
        self._clients.send(self._router, self.num_collected)

    # Receive

    def _receive(self) -> None:
        """Takes in all that has arrived; sleeps when there is nothing else to do."""
        timeout_ms = 0 if self._may_hash else self._timeout_ms()
        if self.grammars.link is not None:
            self._poller.modify(self.grammars.link.fileno(), zmq.POLLIN | zmq.POLLOUT * self.grammars.link.has_unsent)
        events = dict(self._poller.poll(timeout_ms))
        if not events and timeout_ms > 0 and not self._inflight:
            self._idle_check.run()
        pending = self.scheduler.num_running + self.scheduler.num_waiting + self.grammars.num_held
        self._heartbeats.beat(self._heartbeat_index, self.num_collected, pending)
        self._executor.check()
        if self._link.fileno() in events:
            self._receive_control()
        if self.grammars.link is not None and self.grammars.link.fileno() in events:
            self._receive_grammars()
        for count in range(_MAX_FRAMES_A_TURN if self._router in events else 0):
            if count >= _FEW_FRAMES and self._timeout_ms() == 0:
                break
            try:
                identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._on_frame(identity, b"".join(frames))
        self.ends.fail_overdue()

    def _timeout_ms(self) -> int:
        """0: a step could be planned, or has ended."""
        wait_ns = 0 if self._executor.next_result() is not None else self._wait_ns()
        return _IDLE_POLL_MS if wait_ns is None else -(-wait_ns // 10**6)

    def _receive_control(self) -> None:
        while (message := self._link.receive()) is not None:
            if isinstance(message, Drain):
                self._stop_at = time.monotonic() + message.timeout
                self._arrivals.is_closed = True
            else:
                raise LinkClosed(f"unexpected {type(message).__name__}")

    def _receive_grammars(self) -> None:
        """Requests whose grammar is compiled go to the scheduler; those that it cannot bind (any more) end."""
        for request, refused in self.grammars.receive():
            if refused is None:
                self.scheduler.add(request)
                self._idle_check.is_due = True
            else:
                self.ends.fail(request, refused.code, str(refused))
        self.scheduler.may_run = True

    def _on_frame(self, identity: bytes, frame: bytes) -> None:
        client = self._clients.get(identity)
        try:
            message = decode_client_message(frame)
        except ProtocolError as error:
            refuse_malformed(client, frame, error)
            return
        if isinstance(message, Hello):
            self._on_hello(identity, message)
        elif client is None:
            logger.warning("A client sent %s before hello; ignored.", type(message).__name__)
        elif isinstance(message, AddRequest):
            self._arrivals.add(client, message)
            self._idle_check.is_due = True
        elif isinstance(message, AbortRequest):
            for request in [client.requests[h] for h in message.handles if h in client.requests]:
                self.ends.abort(request, message.reason)
        elif isinstance(message, Credit):
            client.grant(message)
        elif isinstance(message, SubscribeBlockEvents):
            self._block_events.subscribe(client)
        elif isinstance(message, Bye) or not client.send_reply(self._router, answer(self, message)):
            self.ends.forget(client)

    def _on_hello(self, identity: bytes, hello: Hello) -> None:
        """Greets a client; one that greets again starts anew."""
        if (client := self._clients.get(identity)) is not None:
            self.ends.forget(client)
        if len(self._clients) >= _MANY_CLIENTS:
            for gone in self._clients.probe_idle(self._router, self.num_collected):
                self.ends.forget(gone)
        if hello.version == PROTOCOL_VERSION:
            self._clients.add(identity, hello.credit)
        else:
            logger.warning("A client speaks protocol version %d, not %d.", hello.version, PROTOCOL_VERSION)
        send_to(self._router, identity, encode(make_welcome(self._config, self.epoch, self._replica)))

    # Schedule and dispatch

    def _wait_ns(self) -> int | None:
        """How long the next step's planning has to wait, in nanoseconds; None: for an event."""
        return self._pacing.wait_ns(self.scheduler.num_waiting, time.monotonic_ns()) if self.scheduler.may_run else None

    def _schedule(self) -> ScheduledStep | None:
        """The next step, planned into the next free slot; None when nothing can or may run now."""
        if self._wait_ns() != 0:
            return None
        plan = self._executor.plan_slot()
        if plan is None:
            return None
        self._plan_ns = time.monotonic_ns()
        self.work.begin("planning", self.scheduler.next_step_id)
        return self.scheduler.schedule(
            plan, self._plan_ns / 1e9, self._pacing.enough_tokens(self.scheduler.num_waiting)
        )

    def _dispatch(self, step: ScheduledStep) -> None:
        self._executor.dispatch()
        self._inflight.append(step)
        self.grammars.order_masks(step)
        dispatch_ns = time.monotonic_ns()
        self._pacing.dispatched(step.num_tokens, dispatch_ns)
        self.timeline.planned(step.step_id, len(step.rows), step.num_tokens, self._plan_ns, dispatch_ns)

    # Collect, update and send

    def _update(self, result: StepResult) -> None:
        """Takes in one step's result and queues what the clients get of it."""
        if len(self._inflight[0].mask_rows):
            self._receive_grammars()  # a mask that could not be filled is known before its token counts
        collect_ns = time.monotonic_ns()
        now = collect_ns / 1e9
        step = self._inflight.popleft()
        self.work.begin("taking in", step.step_id, step.rows)
        self.inspector.step(now)
        outputs = self.scheduler.update(step, result, now)
        self.grammars.accept(outputs, now)  # the next step may be waiting for its masks
        self._clients.add_step(outputs, result, self.scheduler.table)
        started_ns, ended_ns = int(result.header[STARTED_NS]), int(result.header[ENDED_NS])
        self._executor.release_result()
        self._pacing.collected(started_ns, ended_ns)
        self.num_collected += 1
        self.metrics.step(step.num_prompt_tokens, outputs, now)
        for finished in outputs.finished:
            self.ends.finished(finished, now)
        self.timeline.collected(step.step_id, started_ns, ended_ns, collect_ns, time.monotonic_ns())

    def _send(self) -> None:
        for client in self._clients.send(self._router, self.num_collected):
            self.ends.forget(client)
        for request in self._clients.take_overfull():
            self.ends.fail(request, ERROR_READER_TOO_SLOW, TOO_SLOW)
        for client in self._block_events.send(self._router):
            self.ends.forget(client)

    # Draining

    @property
    def is_draining(self) -> bool:
        """Whether the supervisor asked for the end: nothing new is taken."""
        return self._arrivals.is_closed

    def _is_drained(self) -> bool:
        if self._stop_at is None:
            return False
        has_unfinished = self.scheduler.has_unfinished or self.grammars.num_held > 0
        return not has_unfinished or time.monotonic() >= self._stop_at
