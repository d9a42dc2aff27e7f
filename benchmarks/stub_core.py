"""An engine core without an engine: the real socket and messages, tokens from a script. For benchmarks and tests.

Each step gives every running request its next token, one frame per client, as the real core does. It keeps all messages
that it received, so that a test can wait for one of them, and can be paused between two steps.
"""

import argparse
import os
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from msgspec import structs

from engine_core.ipc import messages
from engine_core.ipc.codec import decode_client_message, encode
from engine_core.ipc.sockets import bind_router

EPOCH = 7


@dataclass
class Reply:
    """What a request gets: these tokens, one a step, then the reason; or an error at once."""

    token_ids: Sequence[int] = ()
    reason: str | None = messages.FINISH_LENGTH
    """None: nothing comes after the last token until the client ends the request."""
    stop_token_id: int | None = None
    error: tuple[str, str, float | None] | None = None
    num_top: int = 0
    """With logprobs asked for, the alternatives are the ids from 0 on, the sampled token first."""
    num_cached_tokens: int = 0
    """Of the prompt."""
    endless: bool = False
    """Start again at the first token, up to the request's `max_tokens`."""


@dataclass
class _Running:
    identity: bytes
    add: messages.AddRequest
    reply: Reply
    position: int = 0
    num_before: int = 0
    """Tokens of earlier rounds of an endless reply."""

    @property
    def has_more(self) -> bool:
        return self.position < len(self.reply.token_ids) or self.reply.reason is not None

    @property
    def num_output_tokens(self) -> int:
        return self.num_before + self.position


@dataclass
class _Client:
    credit: int
    running: dict[int, _Running] = field(default_factory=dict)
    finished: list[messages.FinishedRequest] = field(default_factory=list)
    errors: list[messages.RequestError] = field(default_factory=list)


class StubCore:
    """Runs in a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        endpoint: str,
        script: Callable[[messages.AddRequest], Reply],
        *,
        max_model_len: int = 2048,
        vocab_size: int = 4096,
        step_seconds: float = 0.0,
        utilities: dict[str, Callable[[dict[str, Any]], Any]] | None = None,
    ) -> None:
        self.script = script
        self._endpoint = endpoint
        self._limits = {"max_model_len": max_model_len, "vocab_size": vocab_size}
        self._step_seconds = step_seconds
        self._utilities = utilities or {}
        self._clients: dict[bytes, _Client] = {}
        self._step = 0
        self._paused = False
        self._steps_allowed = 0
        self._stopping = False
        self._received: list[messages.ClientMessage] = []
        self._changed = threading.Condition()
        self._wake_read, self._wake_write = os.pipe()
        self._context: zmq.Context = zmq.Context()
        self._socket = bind_router(self._context, endpoint, messages.MAX_CLIENT_FRAME_BYTES)
        self._thread = threading.Thread(target=self._run, daemon=True)

    # For the test's thread.

    def start(self) -> "StubCore":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread and closes the socket: to a client this is the core's death."""
        if not self._stopping:
            self._stopping = True
            self._wake()
            self._thread.join()
            self._context.term()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def pause(self) -> None:
        """No more steps; messages are still received."""
        with self._changed:
            self._paused, self._steps_allowed = True, 0

    def resume(self) -> None:
        with self._changed:
            self._paused = False
        self._wake()

    def pace(self, step_seconds: float) -> None:
        """A step takes so long from now on."""
        self._step_seconds = step_seconds

    def allow_steps(self, count: int) -> None:
        """Takes that many steps while paused."""
        with self._changed:
            self._steps_allowed += count
        self._wake()

    def abort_requests(self, prefix: str) -> int:
        """Ends those whose ids begin so. Also for the core's own thread, as a utility."""
        count = 0
        with self._changed:
            for client in self._clients.values():
                for handle, request in list(client.running.items()):
                    if request.add.request_id.startswith(prefix):
                        del client.running[handle]
                        client.finished.append(_finished(request, messages.FINISH_ABORT, None))
                        count += 1
        self._wake()
        return count

    def received(self, kind: type) -> list[Any]:
        """All messages of a type so far."""
        with self._changed:
            return [message for message in self._received if isinstance(message, kind)]

    def forget(self) -> None:
        """Drops the messages so far."""
        with self._changed:
            self._received.clear()

    def wait_for(self, condition: Callable[["StubCore"], Any], timeout: float = 20.0) -> Any:
        """Waits until the condition holds, looking again after every message and every step."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError("The stub core never got there.")
            return condition(self)

    @property
    def num_running(self) -> int:
        return sum(len(client.running) for client in self._clients.values())

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    # The core's own thread.

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._socket.close()  # also after a failure, or the context's end would wait for it

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_step = time.monotonic()
        while not self._stopping:
            can_step = self._can_step()
            wait = max(0.0, next_step - time.monotonic()) if can_step else None
            ready = dict(poller.poll(None if wait is None else wait * 1000))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._socket in ready:
                self._receive()
            if can_step and time.monotonic() >= next_step:
                # A stub that fell behind does not catch up in a burst: readers shall see single steps.
                next_step = max(next_step + self._step_seconds, time.monotonic() - self._step_seconds)
                self._take_step()
            elif not can_step:
                next_step = time.monotonic()

    def _can_step(self) -> bool:
        allowed = not self._paused or self._steps_allowed > 0
        return any(
            client.credit > 0
            and (client.errors or client.finished or (allowed and any(one.has_more for one in client.running.values())))
            for client in self._clients.values()
        )

    def _receive(self) -> None:
        while True:
            try:
                identity, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = decode_client_message(frame)
            with self._changed:
                self._handle(identity, message)
                self._received.append(message)
                self._changed.notify_all()

    def _handle(self, identity: bytes, message: messages.ClientMessage) -> None:
        if isinstance(message, messages.Hello):
            self._clients[identity] = _Client(credit=message.credit)
            welcome = messages.Welcome(
                version=messages.PROTOCOL_VERSION, epoch=EPOCH, replica=0, num_kv_tokens=65536, **self._limits
            )
            self._socket.send_multipart([identity, encode(welcome)])
            return
        client = self._clients.get(identity)
        if client is None:
            return  # a client's last words, after it was found to be gone
        if isinstance(message, messages.AddRequest):
            for sample in _samples(message):
                reply = self.script(sample)
                if reply.error is not None:
                    code, text, retry_after = reply.error
                    client.errors.append(
                        messages.RequestError(handle=sample.handle, code=code, message=text, retry_after=retry_after)
                    )
                else:
                    client.running[sample.handle] = _Running(identity, sample, reply)
        elif isinstance(message, messages.AbortRequest):
            for handle in message.handles:
                request = client.running.pop(handle, None)
                if request is not None:
                    client.finished.append(_finished(request, message.reason, None))
        elif isinstance(message, messages.Credit):
            client.credit += message.amount
        elif isinstance(message, messages.Bye):
            self._clients.pop(identity, None)
        else:
            self._answer(identity, message)

    def _answer(self, identity: bytes, call: messages.Utility) -> None:
        method = self._utilities.get(call.method)
        if method is None:
            reply = messages.UtilityReply(call_id=call.call_id, error=f"There is no utility {call.method!r}.")
        else:
            reply = messages.UtilityReply(call_id=call.call_id, result=method(call.arguments))
        self._socket.send_multipart([identity, encode(reply)])

    def _take_step(self) -> None:
        with self._changed:
            self._step += 1
            paused = self._paused and self._steps_allowed == 0
            self._steps_allowed = max(0, self._steps_allowed - 1)
            for identity, client in list(self._clients.items()):
                if client.credit > 0 and (client.running or client.finished or client.errors):
                    try:
                        self._socket.send_multipart([identity, encode(self._outputs(client, paused))])
                        client.credit -= 1
                    except zmq.ZMQError:
                        del self._clients[identity]  # a client that is gone
            self._changed.notify_all()

    def _outputs(self, client: _Client, paused: bool) -> messages.RequestOutputs:
        """The next token of each of a client's requests, and what ended."""
        handles, token_ids, num_tops = array("I"), array("i"), array("i")
        columns: list[list[bytes]] = [[], [], [], []]
        started = []
        for handle, request in [] if paused else list(client.running.items()):
            reply = request.reply
            if request.position < len(reply.token_ids):
                token_id = reply.token_ids[request.position]
                handles.append(handle)
                token_ids.append(token_id)
                wanted = request.add.sampling.logprobs
                num_tops.append(-1 if wanted is None else wanted)
                for column, values in zip(columns, () if wanted is None else _logprobs(token_id, wanted), strict=False):
                    column.append(values)
                if request.num_output_tokens == 0:
                    started.append(messages.StartedRequest(handle=handle, num_cached_tokens=reply.num_cached_tokens))
                request.position += 1
            is_last = request.position == len(reply.token_ids)
            if is_last and reply.endless:
                request.num_before += request.position
                request.position = 0
                is_last = False
            if request.num_output_tokens == request.add.sampling.max_tokens and not is_last:
                client.finished.append(_finished(request, messages.FINISH_LENGTH, None))
                del client.running[handle]
            elif is_last and reply.reason is not None:
                client.finished.append(_finished(request, reply.reason, reply.stop_token_id))
                del client.running[handle]
        outputs = messages.RequestOutputs(
            epoch=EPOCH,
            replica=0,
            step=self._step,
            handles=handles.tobytes(),
            num_tokens=array("i", [1] * len(handles)).tobytes(),
            token_ids=token_ids.tobytes(),
            num_tops=num_tops.tobytes() if any(columns) else b"",
            logprobs=b"".join(columns[0]),
            ranks=b"".join(columns[1]),
            top_token_ids=b"".join(columns[2]),
            top_logprobs=b"".join(columns[3]),
            started=started,
            finished=client.finished,
            errors=client.errors,
        )
        client.finished, client.errors = [], []
        return outputs


def _samples(message: messages.AddRequest) -> list[messages.AddRequest]:
    """Each sample as if it had come alone."""
    sampling = message.sampling
    return [
        structs.replace(
            message,
            handle=message.handle + index,
            num_samples=1,
            sampling=structs.replace(sampling, sample_index=sampling.sample_index + index),
        )
        for index in range(message.num_samples)
    ]


def _finished(request: _Running, reason: str, stop_token_id: int | None) -> messages.FinishedRequest:
    return messages.FinishedRequest(
        handle=request.add.handle,
        reason=reason,
        stop_token_id=stop_token_id,
        num_prompt_tokens=len(request.add.prompt_token_ids) // 4,
        num_cached_tokens=request.reply.num_cached_tokens,
        num_output_tokens=request.num_output_tokens + len(request.add.output_token_ids) // 4,
        num_preemptions=0,
        queue_time=0.001,
        prefill_time=0.002,
        decode_time=0.003,
    )


def _logprobs(token_id: int, num_top: int) -> tuple[bytes, bytes, bytes, bytes]:
    """The sampled token leads with -0.5; the other alternatives follow with -1, -2, ... and last with -inf."""
    others = [other for other in range(num_top + 1) if other != token_id]
    top = ([token_id, *others])[:num_top]
    values = [-0.5] + [-float(rank) for rank in range(1, num_top)]
    if num_top > 1:
        values[num_top - 1] = float("-inf")
    return (
        struct.pack("<f", -0.5),
        struct.pack("<i", 1),
        struct.pack(f"<{num_top}i", *top),
        struct.pack(f"<{num_top}f", *values[:num_top]),
    )


def main() -> None:
    """Serves endless tokens until standard input ends: the other half of `bench_frontend.py`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--steps-per-second", type=float, required=True)
    parser.add_argument("--token-ids", required=True, help="comma-separated script of every request")
    parser.add_argument("--vocab-size", type=int, default=4096)
    arguments = parser.parse_args()
    token_ids = [int(token_id) for token_id in arguments.token_ids.split(",")]

    def script(add: messages.AddRequest) -> Reply:
        count = add.sampling.max_tokens or 16
        repeats = -(-count // len(token_ids))
        return Reply(token_ids=(token_ids * repeats)[:count])

    step_seconds = 1 / arguments.steps_per_second
    core = StubCore(arguments.endpoint, script, step_seconds=step_seconds, vocab_size=arguments.vocab_size).start()
    print("listening", flush=True)
    try:
        while os.read(0, 1024):
            pass
    except KeyboardInterrupt:
        pass
    core.stop()


if __name__ == "__main__":
    main()
