"""Utilities as a raw client asks for them: what they answer, and a client that reads none of it."""

import pytest

from engine_core import clients
from engine_core.ipc.codec import decode_core_message, encode
from engine_core.ipc.messages import FINISH_ABORT, Credit, Utility, UtilityReply
from engine_core.ipc.sampling_params import SamplingParams
from tests.engine_core.core_harness import Harness, Reader, add
from tests.engine_core.test_inspector import ask


def test_utilities_answer_or_say_what_there_is(harness: Harness) -> None:
    client = harness.client()
    client.send(encode(Utility(call_id=5, method="metrics")))
    reply = decode_core_message(client.recv())
    assert isinstance(reply, UtilityReply)
    assert reply.call_id == 5
    assert 'vllm:num_requests_running{engine="0"' in reply.result
    client.send(encode(Utility(call_id=6, method="nothing")))
    reply = decode_core_message(client.recv())
    assert isinstance(reply, UtilityReply)
    assert reply.error is not None
    assert "metrics, reset_prefix_cache, status" in reply.error


def test_a_client_that_reads_no_replies_is_dropped(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its requests, once so many bytes are unread. Another one, which reads as many, is served as ever."""
    monkeypatch.setattr(clients, "MAX_UNREAD_REPLY_BYTES", 100_000)
    stalled, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    stalled.send(encode(add(1, sampling=SamplingParams(max_tokens=60))))
    other.send(encode(add(1, request_id="other", sampling=SamplingParams(max_tokens=60))))
    for _ in range(200):
        stalled.send(encode(Utility(call_id=1, method="metrics")))
    num_read, pending = 0, 2
    while pending > 1 or num_read < 300_000:
        other.send(encode(Utility(call_id=1, method="status" if pending > 1 else "metrics")))
        frame = other.recv()
        num_read += len(frame)
        reply = decode_core_message(frame)
        assert isinstance(reply, UtilityReply)
        if pending > 1:
            pending = reply.result["pending"]
        other.send(encode(Credit(num_replies=1)))
    assert len(harness.core._clients) == 1
    harness.executor.gate.set()
    harness.executor.ring()
    reader = Reader(other)
    reader.read_finals(1)
    assert reader.finished[1].reason == "length"
    num_bytes = 0
    while stalled.poll(0):
        num_bytes += (last := len(stalled.recv()))
    assert 100_000 < num_bytes <= 100_000 + last


def test_a_prefix_of_everybodys_ids_is_refused(harness: Harness) -> None:
    error = ask(harness.client(), "abort_requests", prefix="short").error
    assert (error or "").startswith("abort_requests: ")


def test_requests_end_by_the_beginning_of_their_ids(harness: Harness) -> None:
    client, other = harness.client(), harness.client()
    harness.executor.gate.clear()
    for handle, request_id in enumerate(("resp_0123456789-0-a", "resp_0123456789-1-b", "resp_9876543210-0-a")):
        request = add(handle, request_id=request_id, sampling=SamplingParams(max_tokens=4))
        client.send(encode(request))
    while ask(other, "status").result["pending"] < 3:
        pass
    assert ask(other, "abort_requests", prefix="resp_0123456789-").result == 2
    harness.executor.gate.set()
    harness.executor.ring()
    reader = Reader(client)
    reader.read_finals(3)
    assert {handle: final.reason == FINISH_ABORT for handle, final in reader.finished.items()} == {
        0: True,
        1: True,
        2: False,
    }
